"""Shuffling of key images between batch-norm groups, and its undoing.

Query and positive key of an image must not share batch statistics: the statistics tell them apart from all other keys,
the pretext task is solved without looking (paper, section 3.3), and the features stop improving.
"""

import jax
import jax.numpy as jnp
from jax import lax, random

from moco_jax.core import axis, randomness


def permutation(key: jax.Array, total: int, block: int) -> jax.Array:
    """Which original position fills each shuffled slot: (total,) int32, a permutation inside every block of rows.

    The key must be the same on all devices: they act on one permutation of the global batch.
    """

    def one(index: jax.Array) -> jax.Array:
        return random.permutation(random.fold_in(key, index), block).astype(jnp.int32) + block * index

    return jax.vmap(one)(jnp.arange(total // block, dtype=jnp.int32)).reshape(total)  # (G,)


def drawn(seed: int, step: jax.Array, direction: int, *, purpose: int, total: int, block: int) -> jax.Array:
    """The permutation (total,) of one step and direction, a function of the seed and of what it is drawn for."""
    key = random.fold_in(randomness.key(seed, step, purpose), direction)
    return permutation(key, total, block)


def shuffled(x: jax.Array, source: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """This device's shuffled rows and their original positions: x (N, ...), source (G,) -> (N, ...), (N,).

    A block inside one device is a local gather; a block over several devices is gathered among those devices only.
    """
    n = x.shape[0]
    origin = axis.mine(source, n)  # (N,)
    if block <= n:
        return x[origin - lax.axis_index(axis.AXIS) * n], origin
    rows = lax.all_gather(x, axis.AXIS, axis_index_groups=axis.subsets(block // n), tiled=True)  # (block, ...)
    return rows[origin % block], origin


def unshuffled(rows: jax.Array, source: jax.Array) -> jax.Array:
    """Gathered rows in shuffled order put back: (G, C), source (G,) -> (G, C) in the original order."""
    return jnp.zeros_like(rows).at[source].set(rows, unique_indices=True)
