"""The contrastive loss: unit vectors, logits with the positive first, InfoNCE."""

import jax
import jax.numpy as jnp
from jax import lax


def unit(z: jax.Array) -> jax.Array:
    """Rows scaled to unit length, in float32 at least; a zero row stays zero (torch's normalize, eps 1e-12): (N, C)."""
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    square = jnp.sum(z * z, axis=-1, keepdims=True)  # (N, 1)
    return z * lax.rsqrt(jnp.maximum(square, 1e-24))


def contrast_logits(q: jax.Array, k: jax.Array, queue: jax.Array, temperature: float) -> jax.Array:
    """Logits of queries against their own key, then against every row of the queue (paper, Algorithm 1).

    q (N, C) and k (N, C) row by row, queue (K, C), all of unit length -> (N, 1 + K), the positive in column 0. Where
    each query has negatives of its own, queue is (N, K, C).
    Float32 products in full: TPUs and GPUs would otherwise round them to bfloat16 or TF32.
    """
    positive = jnp.sum(q * k, axis=-1, keepdims=True)  # (N, 1)
    negative = jnp.einsum(
        "nc,kc->nk" if queue.ndim == 2 else "nc,nkc->nk", q, queue, precision=lax.Precision.HIGHEST
    )  # (N, K)
    return jnp.concatenate([positive, negative], axis=1) / temperature  # (N, 1 + K)


def leave_out(logits: jax.Array, negatives: jax.Array) -> jax.Array:
    """Logits (N, 1 + K) with minus infinity at some `negatives` (N, K) bool: in no softmax, maximum or mean of them."""
    return jnp.concatenate([logits[:, :1], jnp.where(negatives, -jnp.inf, logits[:, 1:])], axis=1)


def mean_negative(logits: jax.Array) -> jax.Array:
    """Mean over queries of the mean logit of their negatives, those left out not counted: (N, 1 + K) -> ().

    A query without any counts as 0; a nan stays one. By query, so that parts of a batch average to the whole.
    """
    kept = logits[:, 1:] != -jnp.inf  # (N, K)
    total = jnp.sum(jnp.where(kept, logits[:, 1:], 0), axis=1)  # (N,)
    return jnp.mean(total / jnp.maximum(jnp.sum(kept, axis=1, dtype=logits.dtype), 1))


def info_nce(logits: jax.Array) -> jax.Array:
    """Mean cross entropy of a (1 + K)-way softmax whose right class is column 0: (N, 1 + K) -> ()."""
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])


def pretext_accuracy(logits: jax.Array) -> jax.Array:
    """Share of queries whose own key scores highest, ties to the positive as in torch's argmax: (N, 1 + K) -> ().

    A row with a nan is no hit.
    """
    return jnp.mean(logits[:, 0] >= jnp.max(logits[:, 1:], axis=1), dtype=logits.dtype)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of every row of a softmax over classes: (n, classes), (n,) integers -> (n,)."""
    right = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]  # (n,)
    return jax.nn.logsumexp(logits, axis=1) - right
