"""Measurements of features that need no labels."""

import jax
import jax.numpy as jnp
from jax import lax

from moco_jax.core import axis
from moco_jax.core.losses import Compared


def alignment(positive_similarity: jax.Array) -> jax.Array:
    """Mean squared distance of positive pairs of unit vectors, 0 is perfect (Wang and Isola, 2020)."""
    return 2.0 - 2.0 * positive_similarity


def potential(keys: jax.Array, n: int) -> jax.Array:
    """Mean exp(-2 |a - b|^2) of this device's n keys with all other keys (G, C) -> (): over devices, of all pairs."""
    own = axis.mine(keys, n)  # (N, C)
    similarity = jnp.einsum("nc,gc->ng", own, keys, precision=lax.Precision.HIGHEST)  # (N, G)
    others = axis.here(n)[:, None] != jnp.arange(keys.shape[0], dtype=jnp.int32)[None, :]
    each = jnp.where(others, jnp.exp(4.0 * similarity - 4.0), 0.0)  # |a - b|^2 = 2 - 2 a.b
    return jnp.mean(jnp.sum(each, axis=1)) / max(keys.shape[0] - 1, 1)


def uniformity(mean_potential: jax.Array) -> jax.Array:
    """The logarithm of the mean `potential` over devices: about -4 when keys are spread, 0 when collapsed."""
    return jnp.log(mean_potential)


def effective_rank(keys: jax.Array) -> jax.Array:
    """tr(S)^2 / tr(S^2) of the covariance S of keys (G, C): how many directions they use, 1 when collapsed to a line.

    The participation ratio: no eigenvalues needed, so it costs nothing beside a step.
    """
    centred = keys - keys.mean(0, keepdims=True)
    covariance = jnp.einsum("gc,gd->cd", centred, centred, precision=lax.Precision.HIGHEST)  # (C, C)
    tiny = jnp.finfo(keys.dtype).tiny
    return jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance * covariance), tiny)


def similarities(rows: Compared, temperature: float) -> dict[str, jax.Array]:
    """Means over rows, of all directions: pretext accuracy, cosine with the key and with what else is compared."""
    return {
        "pretext_accuracy": jnp.mean(rows.hit, dtype=rows.positive.dtype),
        "positive_similarity": jnp.mean(rows.positive) * temperature,
        "negative_similarity": jnp.mean(rows.negative) * temperature,
    }


def ages(name: str, written: jax.Array, step: jax.Array, dtype: jnp.dtype) -> dict[str, jax.Array]:
    """Mean and largest age in steps of the rows that a step has written, and the share of rows that one has.

    written (rows,) int32: the step, -1 for none -> {NAME_age_mean, NAME_age_max, NAME_filled}.
    """
    real = written >= 0  # (rows,)
    age = jnp.where(real, step.astype(jnp.int32) - written, 0).astype(dtype)  # (rows,)
    filled = jnp.mean(real, dtype=dtype)
    mean = jnp.mean(age) / jnp.maximum(filled, jnp.finfo(dtype).tiny)
    return {f"{name}_age_mean": mean, f"{name}_age_max": jnp.max(age), f"{name}_filled": filled}
