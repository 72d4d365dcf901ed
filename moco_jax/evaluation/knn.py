"""Weighted k-nearest-neighbour classification on the device (Wu et al., 2018), the monitor of MoCo's notebook.

The labelled features stay on the host and go to the device in chunks, so that a million of them fit any device.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moco_jax.config import ConfigError
from moco_jax.core.losses import unit

QUERIES = 256  # classified at once
BANK = 65536  # labelled features compared with at once
TINY = 1e-37  # the least temperature: below, float32 holds 0 for it, and every weight is a nan


class Nearest(NamedTuple):
    """The nearest of a bank for every query, nearest first: cosine similarity (Q, k) and place in the bank (Q, k)."""

    similarity: np.ndarray
    place: np.ndarray


def classify(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    *,
    classes: int,
    k: int,
    temperature: float,
) -> np.ndarray:
    """Predicted class of every query (Q, D) from a labelled bank (M, D): (Q,) int32; see `nearest` and `vote`.

    Raises ConfigError where the bank holds fewer than k.
    """
    return vote(nearest(bank, queries, k=k), bank_labels, classes=classes, k=k, temperature=temperature)


def nearest(bank: np.ndarray, queries: np.ndarray, *, k: int, rows: int = QUERIES, columns: int = BANK) -> Nearest:
    """The k of a bank (M, D) that are nearest to each query (Q, D) by cosine, whatever the chunks.

    `rows` queries are compared with at most `columns` of the bank per call; tails are padded and left out. Among
    neighbours of equal similarity those first in the bank come first (scikit-learn leaves open which); equal is equal
    after rounding, in the features' dtype, at least float32. Raises ConfigError where the bank holds fewer than k.
    """
    if k > len(bank):
        raise ConfigError(f"k {k} neighbours, but the bank holds {len(bank)} images; use k {len(bank)} or less")
    columns = even(len(bank), columns)
    dtype = np.promote_types(queries.dtype, np.float32)
    none = np.zeros((rows, 0), dtype), np.zeros((rows, 0), np.int32)
    found = [none] * -(-len(queries) // rows)
    for start in range(0, len(bank), columns):
        found = _with_chunk(found, bank[start : start + columns], queries, start, k=k, columns=columns)
    similarity, index = (np.concatenate(parts)[: len(queries)] for parts in zip(*found, strict=True))
    return Nearest(similarity, index)


def vote(found: Nearest, bank_labels: np.ndarray, *, classes: int, k: int, temperature: float) -> np.ndarray:
    """The class of every query by the first k of its neighbours, (Q,) int32.

    Each votes with weight exp(similarity / T); among classes of equal votes the lowest label wins.
    """
    labels, out = np.asarray(bank_labels, np.int32), []
    for start in range(0, len(found.place), QUERIES):
        rows = slice(start, start + QUERIES)
        near = found.similarity[rows, :k], labels[found.place[rows, :k]]
        out.append(np.asarray(_vote(*near, classes=classes, temperature=temperature)))
    return np.concatenate(out)


def even(count: int, most: int) -> int:
    """Rows of each of the fewest chunks of at most `most` that hold `count`, so that little of the last is padding."""
    return -(-count // -(-count // most))


def memory(*, width: int, classes: int, k: int, rows: int, columns: int) -> int:
    """Bytes of float32 that `nearest` and `vote` hold on a device at once, for features (., width), at most.

    The largest of three moments, whatever the bank holds: a chunk of it before and after it is normalised; that chunk
    beside queries, likewise, and their similarities, which a device that sorts them (GPU) holds five times: as they
    are, and with their places before and after; or one-hot labels of the neighbours.
    """
    normalised = 2 * columns * width
    compared = columns * width + 2 * rows * width + 5 * rows * columns + 12 * rows * k
    voted = QUERIES * (k * (classes + 3) + classes + 1)
    return 4 * max(normalised, compared, voted)


def _with_chunk(
    found: list[tuple[np.ndarray, np.ndarray]],
    part: np.ndarray,
    queries: np.ndarray,
    start: int,
    *,
    k: int,
    columns: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The nearest so far and among `part` of the bank, from `start` on; its copy on the device ends with the call."""
    keys, out = _unit(_padded(part, columns)), []  # (columns, D)
    for i, before in enumerate(found):
        rows = len(before[0])
        asked = _padded(queries[i * rows : (i + 1) * rows], rows)
        out.append(jax.device_get(_merged(*before, keys, asked, len(part), start, k=k)))
    return out


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(x, ((0, rows - len(x)), (0, 0)))


_unit = jax.jit(unit)  # in one piece: step by step, the squares of a chunk would be held as well


@partial(jax.jit, static_argnames="k")
def _merged(
    similarity: jax.Array, index: jax.Array, keys: jax.Array, rows: jax.Array, real: int, start: int, *, k: int
) -> tuple[jax.Array, jax.Array]:
    """The nearest so far, which lie before `start`, and those among `keys`, of which `real` are no padding."""
    here = jnp.einsum("qd,md->qm", unit(rows), keys, precision=lax.Precision.HIGHEST)  # (rows, columns)
    here = jnp.where(jnp.arange(here.shape[1])[None] < real, here, -jnp.inf)
    near, place = lax.top_k(here, min(k, here.shape[1]))
    both = jnp.concatenate([similarity, near], axis=1)
    places = jnp.concatenate([index, place.astype(jnp.int32) + start], axis=1)
    best, chosen = lax.top_k(both, min(k, both.shape[1]))  # among equals the first: earlier in the bank
    return best, jnp.take_along_axis(places, chosen, axis=1)


@partial(jax.jit, static_argnames=("classes", "temperature"))
def _vote(nearest: jax.Array, labels: jax.Array, *, classes: int, temperature: float) -> jax.Array:
    # Relative to the nearest: the same order of classes, and exp cannot overflow at small T.
    weights = jnp.exp((nearest - nearest[:, :1]) / temperature)  # (q, k)
    chosen = jax.nn.one_hot(labels, classes, dtype=weights.dtype)  # (q, k, classes)
    votes = jnp.einsum("qk,qkc->qc", weights, chosen, precision=lax.Precision.HIGHEST)
    return jnp.argmax(votes, axis=1)
