"""A step that is not finite changes nothing: no weight, statistic, optimizer state or stored key sees a bad batch."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")


def finite(tree: Any) -> jax.Array:
    """Whether every number of every leaf is finite: () bool.

    For values that are equal on all devices, so that all decide alike: means over devices, gathered keys. A mean is not
    finite where one device's part is not.
    """
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def anew(tree: Tree) -> Tree:
    """The same values, from which XLA computes again what it has computed before: cheaper than to keep it, if large."""
    return jax.tree.map(lax.optimization_barrier, tree)


def held(ok: jax.Array | bool, new: Tree, old: Tree) -> Tree:
    """`new` where ok, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)
