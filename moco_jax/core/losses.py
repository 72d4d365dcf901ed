"""The contrastive loss: unit vectors, logits with the positive first, InfoNCE."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


def unit(z: jax.Array) -> jax.Array:
    """Rows scaled to unit length, in float32 at least; a zero row stays zero (torch's normalize, eps 1e-12): (N, C)."""
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    square = jnp.sum(z * z, axis=-1, keepdims=True)  # (N, 1)
    return z * lax.rsqrt(jnp.maximum(square, 1e-24))


def similarity(q: jax.Array, keys: jax.Array) -> jax.Array:
    """Cosines of queries (N, C) with each of the keys (K, C), or of their own (N, K, C), all of unit length: (N, K).

    Float32 products in full: TPUs and GPUs would otherwise round them to bfloat16 or TF32.
    """
    return jnp.einsum("nc,kc->nk" if keys.ndim == 2 else "nc,nkc->nk", q, keys, precision=lax.Precision.HIGHEST)


def contrast_logits(q: jax.Array, k: jax.Array, queue: jax.Array, temperature: float) -> jax.Array:
    """Logits of queries against their own key, then against every row of the queue (paper, Algorithm 1).

    q (N, C) and k (N, C) row by row, queue (K, C), all of unit length -> (N, 1 + K), the positive in column 0. Where
    each query has negatives of its own, queue is (N, K, C).
    """
    positive = jnp.sum(q * k, axis=-1, keepdims=True)  # (N, 1)
    return jnp.concatenate([positive, similarity(q, queue)], axis=1) / temperature  # (N, 1 + K)


def leave_out(logits: jax.Array, negatives: jax.Array) -> jax.Array:
    """Logits (N, 1 + K) with minus infinity at some `negatives` (N, K) bool: in no softmax, maximum or mean of them."""
    return jnp.concatenate([logits[:, :1], jnp.where(negatives, -jnp.inf, logits[:, 1:])], axis=1)


class Compared(NamedTuple):
    """What the logits of each query come to, (N,) each: by query, so that parts of a batch average to the whole."""

    info_nce: jax.Array  # cross entropy of a (1 + K)-way softmax whose right class is the query's own key
    hit: jax.Array  # bool: its own key scores highest, ties to the key as in torch's argmax; with a nan it does not
    positive: jax.Array  # logit of its own key
    negative: jax.Array  # mean logit of its negatives, those left out not counted: 0 without any, a nan stays one


def compared(logits: jax.Array) -> Compared:
    """Each query against all it is compared with: (N, 1 + K), the positive in column 0, minus infinity: left out."""
    positive, negatives = logits[:, 0], logits[:, 1:]
    kept = negatives != -jnp.inf  # (N, K)
    total = jnp.sum(jnp.where(kept, negatives, 0), axis=1)  # (N,)
    negative = total / jnp.maximum(jnp.sum(kept, axis=1, dtype=logits.dtype), 1)
    return Compared(
        info_nce=jax.nn.logsumexp(logits, axis=1) - positive,
        hit=positive >= jnp.max(negatives, axis=1),
        positive=positive,
        negative=negative,
    )


def info_nce(logits: jax.Array) -> jax.Array:
    """The loss, a mean over queries: (N, 1 + K) -> ()."""
    return jnp.mean(compared(logits).info_nce)


def pretext_accuracy(logits: jax.Array) -> jax.Array:
    """Share of queries whose own key scores highest: (N, 1 + K) -> ()."""
    return jnp.mean(compared(logits).hit, dtype=logits.dtype)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of every row of a softmax over classes: (n, classes), (n,) integers -> (n,)."""
    right = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]  # (n,)
    return jax.nn.logsumexp(logits, axis=1) - right
