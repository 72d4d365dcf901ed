"""Which record stands at which position of which step: a function of (seed, step, position); nothing is saved."""

from collections.abc import Callable

import numpy as np
from grain.experimental import index_shuffle

from moco_jax.config import ConfigError

# (ids (n,), draws (n,): one random uint64 per row) -> (n, 2): the records behind views 0 and 1. A row may depend on
# nothing but itself, because rows are spread over hosts.
PairRule = Callable[[np.ndarray, np.ndarray], np.ndarray]


def same_record(ids: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The default pair rule: two views of one record. (n,), (n,) -> (n, 2)."""
    return np.stack([ids, ids], axis=1)


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
    seed32 = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])  # index_shuffle takes 32 bits
    places = step_in_epoch * batch_size + np.asarray(positions, np.int64)
    shuffled = [index_shuffle(place, max_index=records - 1, seed=seed32, rounds=4) for place in places.tolist()]
    found = np.array(shuffled, np.int32)  # (n,)
    return _checked(pairs(found, draws(seed, step, positions)), len(found), records)


def draws(seed: int, step: int, positions: np.ndarray) -> np.ndarray:
    """One random word per row, (n,) -> (n,) uint64, whatever rows stand beside it (three rounds of splitmix64)."""
    word = _splitmix64(np.array([seed], np.uint64))
    word = _splitmix64(word + np.uint64(step))
    return _splitmix64(word + np.asarray(positions).astype(np.uint64))


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
