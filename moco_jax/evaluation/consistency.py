"""Key consistency of a run, as an evaluator: are stored keys what today's target would say? No labels needed."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moco_jax import parallel
from moco_jax.core import axis
from moco_jax.loop import Evaluator
from moco_jax.state import Mechanism

PERCENT = (0, 25, 50, 75, 100)  # of the way from the newest keys of the queue to the oldest


def key_consistency(
    mechanism: Mechanism, batches: Callable[..., Iterator[Any]], data: Any, *, batch_size: int
) -> Evaluator:
    """Cosine of stored keys with those that today's target makes of the same images, by age (MoCo, section 3.2).

    For some steps whose keys are all in the queue yet, the batch of that step is made and encoded again: the same
    records, crops, augmentation, shuffle and batch-norm groups, by the mechanism's own `contrast`. The target alone
    differs: it is that of the coming step, so keys of age a are compared with a target that has moved a times since.

    batches(first_step=, last_step=): host batches of this process; data: as the step takes it. The evaluator returns
    {"key_cosine_0": mean over the keys of the newest step, "key_age_0": its age in steps, and so on for each of
    PERCENT}; nothing where no step has written. A queue of few steps gives the same age several times.
    """

    def cosine(state: Any, batch: Any, extra: Any) -> jax.Array:
        data, step, first = extra
        keys = mechanism.contrast(state.replace(step=step), jax.tree.map(lambda a: a[0], batch), data).keys
        queue, positions = state.memory.queue, axis.here(keys.shape[1])
        # As they are enqueued: the keys of the last direction, which are view 0's, come first.
        rows = [(first + i * batch_size + positions) % queue.shape[0] for i in reversed(range(len(keys)))]
        both = jnp.einsum("dnc,dnc->dn", keys, queue[jnp.stack(rows)], precision=lax.Precision.HIGHEST)
        return axis.mean(jnp.mean(both))

    mapped = parallel.map_rows(cosine)  # one compile for all ages

    def measure(state: Any, now: int, age: int, per_step: int, size: int) -> float:
        step = now - age
        (batch,) = batches(first_step=step, last_step=step + 1)
        placed = parallel.put_batch(jax.tree.map(lambda a: a[None], batch))
        first = (int(parallel.host(state.memory.ptr)) - age * per_step) % size  # the first row that `step` wrote
        return float(parallel.host(mapped(state, placed, (data, np.int32(step), np.int32(first)))).item())

    def evaluate(state: Any) -> dict[str, float | str]:
        now, written = int(parallel.host(state.step)), parallel.host(state.memory.written)
        if now == 0:
            return {}
        per_step = int((written == now - 1).sum())  # a step's keys never overwrite one another
        ages = whole_ages(now, per_step, len(written))
        found = {age: measure(state, now, age, per_step, len(written)) for age in sorted(set(ages))}
        out: dict[str, float | str] = {f"key_cosine_{p}": found[age] for p, age in zip(PERCENT, ages, strict=True)}
        return out | {f"key_age_{p}": age for p, age in zip(PERCENT, ages, strict=True)}

    return evaluate


def whole_ages(now: int, per_step: int, size: int) -> list[int]:
    """For each of PERCENT an age in steps, 1 to the oldest step whose `per_step` keys are all in a queue of `size`."""
    oldest = min(now, size // per_step)
    return [1 + round((oldest - 1) * p / 100) for p in PERCENT]
