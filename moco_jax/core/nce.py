"""Noise-contrastive estimation: is a feature of the query's image, or drawn from noise? Yes or no, K + 1 times.

As in Wu and others (arXiv:1805.01978, section 3.2), and in their code: noise is uniform over the N images, a feature
has probability exp(s / T) / Z, and Z, too dear to compute, is N times a mean over those drawn, kept from then on.
"""

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from moco_jax.core import axis

Memory = TypeVar("Memory", bound=Any)  # a bank or a queue with log_z and batches


def log_z(memory: Any, logits: jax.Array, records: int, first: int) -> jax.Array:
    """log Z (): the mean of its estimates from the `first` batches, then as the memory's log_z.

    logits (N, M): similarities over T of this device's queries with what was drawn, minus infinity for what is left
    out. Logarithms throughout, as exp(1 / T) of a small T is no float32. Their code takes the first batch alone.
    """
    logits = lax.stop_gradient(logits)
    total, count = jax.nn.logsumexp(logits), jnp.sum(logits != -jnp.inf, dtype=logits.dtype)  # of this device
    total, count = axis.gather(jnp.stack([total, count])[None]).T  # (devices,) each
    now = jax.nn.logsumexp(total) - jnp.log(jnp.sum(count)) + math.log(records)
    done = memory.batches.astype(now.dtype)
    before = jnp.where(done > 0, memory.log_z + jnp.log(jnp.maximum(done, 1)), -jnp.inf)  # log of a sum
    return jnp.where(memory.batches < first, jnp.logaddexp(before, now) - jnp.log(done + 1), memory.log_z)


def remembered(memory: Memory, measured: jax.Array, first: int, *, ok: jax.Array | bool = True) -> Memory:
    """The memory with log_z as `measured`, until it is that of the `first` batches, and where ok ().

    Once fixed it is handed on bit by bit, which a mean over devices would not promise.
    """
    anew = ok & (memory.batches < first)
    return memory.replace(
        log_z=jnp.where(anew, measured, memory.log_z), batches=memory.batches + anew.astype(jnp.int32)
    )


def nce(logits: jax.Array, log_z: jax.Array, records: int) -> jax.Array:
    """Mean over queries of -log P(key) - sum over negatives of log(1 - P): (N, 1 + K), the key in column 0 -> ().

    P = p / (p + K / N) for a probability p = exp(logit) / Z, so N cancels against the one in Z. Negatives that are left
    out (minus infinity) add nothing.
    """
    noise = math.log(logits.shape[1] - 1) + log_z - math.log(records)  # log(Z K / N): where P is a half
    wrong = jax.nn.softplus(logits[:, 1:] - noise)  # (N, K)
    return jnp.mean(jax.nn.softplus(noise - logits[:, 0]) + jnp.sum(wrong, axis=1))


def chance(negatives: int) -> float:
    """The loss where all similarities are equal and Z is theirs: P is 1 / (K + 1) everywhere."""
    return math.log1p(negatives) + negatives * math.log1p(1 / negatives)
