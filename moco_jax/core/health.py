"""Measurements of features that need no labels."""

import jax
import jax.numpy as jnp
from jax import lax

from moco_jax.core import axis
from moco_jax.core.queue import Queue


def alignment(positive_similarity: jax.Array) -> jax.Array:
    """Mean squared distance of positive pairs of unit vectors, 0 is perfect (Wang and Isola, 2020)."""
    return 2.0 - 2.0 * positive_similarity


def uniformity(keys: jax.Array, n: int) -> jax.Array:
    """log E exp(-2 |a - b|^2) over all pairs of different keys (G, C), about -4 when spread, 0 when collapsed -> ().

    Each device takes its own n rows against all; the mean over devices is the mean over all pairs.
    """
    own = axis.mine(keys, n)  # (N, C)
    similarity = jnp.einsum("nc,gc->ng", own, keys, precision=lax.Precision.HIGHEST)  # (N, G)
    others = axis.here(n)[:, None] != jnp.arange(keys.shape[0], dtype=jnp.int32)[None, :]
    potential = jnp.where(others, jnp.exp(4.0 * similarity - 4.0), 0.0)  # |a - b|^2 = 2 - 2 a.b
    return jnp.log(axis.mean(jnp.mean(jnp.sum(potential, axis=1)) / max(keys.shape[0] - 1, 1)))


def effective_rank(keys: jax.Array) -> jax.Array:
    """tr(S)^2 / tr(S^2) of the covariance S of keys (G, C): how many directions they use, 1 when collapsed to a line.

    The participation ratio: no eigenvalues needed, so it costs nothing beside a step.
    """
    centred = keys - keys.mean(0, keepdims=True)
    covariance = jnp.einsum("gc,gd->cd", centred, centred, precision=lax.Precision.HIGHEST)  # (C, C)
    tiny = jnp.finfo(keys.dtype).tiny
    return jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance * covariance), tiny)


def queue_age(memory: Queue, step: jax.Array) -> dict[str, jax.Array]:
    """Mean and largest age in steps of the rows that a step wrote, and the share of rows that it did."""
    real = memory.written >= 0  # (K,)
    age = jnp.where(real, step.astype(jnp.int32) - memory.written, 0).astype(memory.queue.dtype)  # (K,)
    filled = jnp.mean(real, dtype=age.dtype)
    mean = jnp.mean(age) / jnp.maximum(filled, jnp.finfo(age.dtype).tiny)
    return {"queue_age_mean": mean, "queue_age_max": jnp.max(age), "queue_filled": filled}
