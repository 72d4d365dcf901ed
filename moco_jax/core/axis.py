"""The one axis name, and the few things that a per-device function may ask of it."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

AXIS = "batch"  # the mapped axis: images of the global batch are spread over it in order

Tree = TypeVar("Tree")


def size() -> int:
    """How many devices the mapped axis holds (a Python int)."""
    return lax.axis_size(AXIS)


def here(n: int) -> jax.Array:
    """Positions in the global batch of this device's n rows: (n,) int32."""
    return lax.axis_index(AXIS) * n + jnp.arange(n, dtype=jnp.int32)  # (N,)


def mine(rows: jax.Array, n: int) -> jax.Array:
    """This device's n rows of a global array: (G, ...) -> (n, ...)."""
    return lax.dynamic_slice_in_dim(rows, lax.axis_index(AXIS) * n, n)  # (N, ...)


def gather(rows: jax.Array) -> jax.Array:
    """The rows of all devices in order: (N, ...) -> (G, ...)."""
    return lax.all_gather(rows, AXIS, tiled=True)  # (G, ...)


def mean(tree: Tree) -> Tree:
    """Mean of every leaf over the devices, in one group of all-reduces."""
    return lax.pmean(tree, AXIS)


def subsets(span: int) -> list[list[int]] | None:
    """Consecutive subsets of `span` devices, for a collective inside each; None when one subset holds all."""
    devices = size()
    return None if span == devices else [list(range(i, i + span)) for i in range(0, devices, span)]
