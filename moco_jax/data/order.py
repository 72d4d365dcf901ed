"""Which record stands at which position of which step, and behind which row of the queue; nothing is saved.

All of it is a function of (seed, step, position), so that hosts agree without a word and a resumed run goes on.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from grain.experimental import index_shuffle

from moco_jax.config import ConfigError

# (ids (n,), draws (n,): one random uint64 per row) -> (n, 2): the records behind views 0 and 1. A row may depend on
# nothing but itself, because rows are spread over hosts.
PairRule = Callable[[np.ndarray, np.ndarray], np.ndarray]

NO_RUN = 2**32  # the seed of no run (record 0 shares the words of seed 0 and epoch 1, which hurts nobody)


class Ring(NamedTuple):
    """What the order has to know of a queue: its rows K, and the views whose keys a step enqueues, in that order."""

    size: int
    views: tuple[int, ...]


def same_record(ids: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The default pair rule: two views of one record. (n,), (n,) -> (n, 2)."""
    return np.stack([ids, ids], axis=1)


def same_group(groups: np.ndarray, max_gap: int | None) -> PairRule:
    """The pair rule of data.pairs="same_group": view 1 is another record of the group of view 0.

    groups (records,) integers: equal ones belong together, as the frames of a clip (MoCo's seed for video). A group's
    order is that of its records in the source. Partners lie within max_gap places of it (None: anywhere in the group),
    are equally likely, and never the record itself unless it is alone. Equally: a 64-bit draw modulo their number, so
    that probabilities differ by less than one part in 2**64 / records.
    """
    order = np.argsort(groups, kind="stable")  # (records,) groups one after another, each in the order of the source
    _, start, size = np.unique(groups[order], return_index=True, return_counts=True)  # (groups,) each
    group = np.repeat(np.arange(len(size)), size)  # (records,) of `order`
    first = np.empty(len(groups), np.int64)
    place, last = np.empty_like(first), np.empty_like(first)  # of a record in its group, and of the group's last
    first[order], last[order] = start[group], size[group] - 1
    place[order] = np.arange(len(groups)) - start[group]

    def rule(ids: np.ndarray, draws: np.ndarray) -> np.ndarray:
        here, end = place[ids], last[ids]  # (n,)
        low = np.zeros_like(here) if max_gap is None else np.maximum(here - max_gap, 0)
        high = end if max_gap is None else np.minimum(here + max_gap, end)
        others = high - low  # (n,) without the record itself
        drawn = low + (draws % np.maximum(others, 1).astype(np.uint64)).astype(np.int64)
        partner = np.where(others == 0, here, drawn + (drawn >= here))  # (n,)
        return np.stack([ids, order[first[ids] + partner]], axis=1)  # (n, 2)

    return rule


def alone(groups: np.ndarray) -> tuple[int, int]:
    """How many groups hold one record, and how many groups there are."""
    sizes = np.unique(groups, return_counts=True)[1]
    return int((sizes == 1).sum()), len(sizes)


def steps_per_epoch(records: int, batch_size: int) -> int:
    """Whole batches in `records` images; the tail left out differs between epochs. ConfigError if there is none."""
    if batch_size < 1 or records < batch_size:
        raise ConfigError(f"batch_size {batch_size} does not fit {records} images; use 1 to {records}")
    return records // batch_size


def ids(
    seed: int,
    step: int,
    positions: np.ndarray,
    *,
    records: int,
    batch_size: int,
    pairs: PairRule = same_record,
) -> np.ndarray:
    """Records at global `positions` (n,) of the batch of `step`: (n, V) int32 with V = 2.

    An epoch is a permutation of all records from (seed, epoch), cut into batches: before the pair rule each record
    comes at most once per epoch. Positions are those of the global batch, so hosts with different positions hold
    different records. Raises ConfigError for a pair rule whose result is not (n, 2) integers below `records`.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch(records, batch_size))
    places = step_in_epoch * batch_size + np.asarray(positions, np.int64)
    found = _permuted(seed, epoch, places, records)  # (n,)
    return _checked(pairs(found, draws(seed, step, positions)), len(found), records)


def covered(
    seed: int, step: int, positions: np.ndarray, *, records: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Records (n,) int32 at global `positions` (n,) of a step, and which of them count (n,) bool: none is left out.

    For training on labels. An epoch is a permutation of all records in ceil(records / batch_size) steps; what is
    missing in the last one is filled up by records from the epoch's beginning, which do not count again.
    """
    epoch, step_in_epoch = divmod(step, -(-records // batch_size))
    places = step_in_epoch * batch_size + np.asarray(positions, np.int64)
    return _permuted(seed, epoch, places % records, records), places < records


def queue_ids(step: int, ring: Ring, batch: Callable[[int], np.ndarray], *, batch_size: int) -> np.ndarray:
    """The records of the last K keys before `step`, the newest first: (ring.size,) int32, -1 where there were fewer.

    batch(step) -> ids (batch_size, V) of the whole global batch. A step enqueues the keys of ring.views, one view after
    the other, each in the order of the batch. So what is behind a key follows from step and seed, and no checkpoint
    holds it; `core.queue.behind` finds a row's key by the step that wrote it.
    """
    found = np.full(ring.size, -1, np.int32)
    per_step = len(ring.views) * batch_size
    steps = range(max(step - -(-ring.size // per_step), 0), step)
    if steps:
        keys = np.concatenate([batch(s)[:, view] for s in steps for view in ring.views])  # whole steps
        newest = keys[::-1][: ring.size]
        found[: len(newest)] = newest
    return found


def stand_ins(record: int, records: int, groups: np.ndarray | None = None) -> Iterator[int]:
    """All records in the order in which they stand in for one that cannot be read: a function of `record` alone.

    It is a permutation of its own, so that the neighbours in a damaged folder do not all show one image. With `groups`
    (records,), as of a pair rule, the record's own group comes first, from the nearest on; where none of that can be
    read, all of its records go through the same permutation, so that the views of a pair are still of one thing.
    """
    first = record
    if groups is not None:
        members = np.flatnonzero(groups == groups[record])  # rising
        gaps = np.abs(np.arange(len(members)) - np.searchsorted(members, record))
        yield from members[np.argsort(gaps, kind="stable")].tolist()
        first = int(members[0])
    for place in range(records):
        yield int(_permuted(NO_RUN, first, np.array([place]), records)[0])


def draws(seed: int, step: int, positions: np.ndarray) -> np.ndarray:
    """One random word per row, (n,) -> (n,) uint64, whatever rows stand beside it (three rounds of splitmix64)."""
    word = _splitmix64(np.array([seed], np.uint64))
    word = _splitmix64(word + np.uint64(step))
    return _splitmix64(word + np.asarray(positions).astype(np.uint64))


def _permuted(seed: int, epoch: int, places: np.ndarray, records: int) -> np.ndarray:
    """The records (n,) int32 at `places` (n,) of an epoch's permutation."""
    seed32 = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])  # index_shuffle takes 32 bits
    found = [index_shuffle(place, max_index=records - 1, seed=seed32, rounds=4) for place in places.tolist()]
    return np.array(found, np.int32)


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele and others, OOPSLA 2014); unsigned arrays wrap around, as it needs."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _checked(found: np.ndarray, rows: int, records: int) -> np.ndarray:
    found = np.asarray(found)
    if found.shape != (rows, 2) or found.dtype.kind not in "iu":
        raise ConfigError(
            f"the pair rule returned {found.dtype} {found.shape} for {rows} rows; return integers ({rows}, 2)"
        )
    if rows and not 0 <= found.min() <= found.max() < records:
        raise ConfigError(
            f"the pair rule returned records {found.min()} to {found.max()}; there are 0 to {records - 1}"
        )
    return found.astype(np.int32)
