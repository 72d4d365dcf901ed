"""Encoding a device's images a few at a time: exact, because statistics live in groups and negatives in the queue."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# (rows) -> (averaged, per_row): a tree whose leaves are means over the rows, and a tree whose leaves have one row each.
Part = Callable[[Any], tuple[Any, Any]]


def microbatched(function: Part, rows: Any, *, size: int | None, scan: bool) -> tuple[Any, Any]:
    """`function` over micro-batches of `size` rows: means of its first output, all rows of its second.

    `scan` keeps one micro-batch's code in the program; XLA on CPU runs convolution gradients inside a scan some 30
    times slower, so it is unrolled there. None: all rows at once.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    if size is None or size == n:
        return function(rows)
    parts = jax.tree.map(lambda a: a.reshape(n // size, size, *a.shape[1:]), rows)
    if scan:
        averaged, per_row = lax.map(function, parts)
        return jax.tree.map(lambda a: a.mean(0, dtype=a.dtype), averaged), jax.tree.map(_joined, per_row)
    outs = [function(jax.tree.map(lambda a, i=i: a[i], parts)) for i in range(n // size)]
    averaged = jax.tree.map(lambda *a: sum(a) / len(a), *(out[0] for out in outs))
    return averaged, jax.tree.map(lambda *a: jnp.concatenate(a), *(out[1] for out in outs))


def _joined(parts: jax.Array) -> jax.Array:
    return parts.reshape(parts.shape[0] * parts.shape[1], *parts.shape[2:])
