"""The stem's max-pool, with a gradient that is gathered and not scattered."""

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Residuals = tuple[jax.Array, jax.Array]


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """3x3, stride 2, one pixel of minus infinity around, as torch's: (n, H, W, C) -> (n, H', W', C), sizes rounded up.

    Among equal values the first in reading order gets the gradient (torch). XLA's own gradient of a pool is a scatter,
    which on a GPU adds with atomics, in another order each time, so that a run would not repeat to the bit.
    """
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _forward(x: jax.Array) -> tuple[jax.Array, Residuals]:
    """The largest of each window, and which of its nine pixels that is, as a byte."""
    padded = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=-jnp.inf)
    n, channels = x.shape[0], x.shape[3]
    height, width = (-(-size // 2) for size in x.shape[1:3])
    best, tap = jnp.full((n, height, width, channels), -jnp.inf, x.dtype), jnp.zeros((), jnp.uint8)
    for i, (row, column) in enumerate(_taps()):
        there = padded[:, row : row + 2 * height : 2, column : column + 2 * width : 2]  # (n, H', W', C)
        tap = jnp.where(there > best, jnp.uint8(i), tap)  # (n, H', W', C)
        best = jnp.maximum(best, there)
    return best, (tap, jnp.zeros((0, *x.shape[1:3], 0)))  # the latter for its shape: a residual is an array


def _backward(residuals: Residuals, gradient: jax.Array) -> tuple[jax.Array]:
    """Each pixel takes the gradients of the windows, four at most, whose largest it is."""
    tap, like = residuals
    height, width = like.shape[1:3]
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    total = jnp.zeros((), wide.dtype)
    for i, (row, column) in enumerate(_taps()):
        rows, columns = _spread(row, height, tap.shape[1]), _spread(column, width, tap.shape[2])
        mine = jnp.where(tap == i, wide, 0)  # (n, H', W', C)
        total += lax.pad(mine, jnp.zeros((), wide.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))  # (n, H, W, C)
    return (total.astype(gradient.dtype),)


def _spread(tap: int, size: int, windows: int) -> tuple[int, int, int]:
    """How `lax.pad` puts what is of each window where its pixel `tap` of three lies: window w begins at 2 w - 1."""
    return tap - 1, size - 2 * windows + 2 - tap, 1


def _taps() -> Iterator[tuple[int, int]]:
    return ((row, column) for row in range(3) for column in range(3))


max_pool.defvjp(_forward, _backward)
