"""Key consistency of a run, as an evaluator: are stored keys what today's encoder would say? No labels needed."""

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

PERCENT = (0, 25, 50, 75, 100)  # of the way from the newest stored keys to the oldest


def key_consistency(mechanism: Mechanism, batches: Callable[..., Iterator[Any]], data: Any) -> Evaluator:
    """Cosine of stored keys with those that today's encoder makes of the same images, by age (MoCo, section 3.2).

    For some steps whose keys are all stored yet, the batch of that step is made and encoded again: the same records,
    crops, augmentation, shuffle and batch-norm groups, by the mechanism's own `contrast`. The encoder alone differs: it
    is that of the coming step, so a queue's keys of age a are compared with a target that has moved a times since.

    mechanism: one that has `stored`; batches(first_step=, last_step=): host batches of this process; data: as the step
    takes it. The evaluator returns {"key_cosine_0": mean over the keys of the newest step, "key_age_0": its age in
    steps, and so on for each of PERCENT}; nothing where no step has written. A memory of few steps gives the same age
    several times.
    """
    stored = mechanism.stored
    if stored is None:
        raise ValueError("the mechanism stores no keys: there is nothing to compare")

    def cosine(state: Any, batch: Any, extra: Any) -> jax.Array:
        data, step = extra
        rows = jax.tree.map(lambda a: a[0], batch)
        now, then = mechanism.contrast(state.replace(step=step), rows, data).keys, stored(state, rows, step)
        both = jnp.einsum("dnc,dnc->dn", now, then.astype(now.dtype), precision=lax.Precision.HIGHEST)
        return axis.mean(jnp.mean(both))

    mapped = parallel.map_rows(cosine)  # one compile for all ages

    def measure(state: Any, step: int) -> float:
        (batch,) = batches(first_step=step, last_step=step + 1)
        placed = parallel.put_batch(jax.tree.map(lambda a: a[None], batch))
        return float(parallel.host(mapped(state, placed, (data, np.int32(step)))).item())

    def evaluate(state: Any) -> dict[str, float | str]:
        now = int(parallel.host(state.step))
        ages = whole_ages(now, parallel.host(state.memory.written))
        found = {age: measure(state, now - age) for age in sorted(set(ages))}
        out: dict[str, float | str] = {f"key_cosine_{p}": found[age] for p, age in zip(PERCENT, ages, strict=False)}
        return out | {f"key_age_{p}": age for p, age in zip(PERCENT, ages, strict=False)}

    return evaluate


def whole_ages(now: int, written: np.ndarray) -> list[int]:
    """For each of PERCENT an age in steps at step `now`, among the steps that lost no key; none where none has any.

    written (rows,): the step that wrote each row, -1 for none; the newest step has all its keys.
    """
    steps, counts = np.unique(written[written >= 0], return_counts=True)
    ages = now - steps[counts == counts[-1:]][::-1]  # from the newest on
    return [int(ages[round((len(ages) - 1) * p / 100)]) for p in PERCENT] if len(ages) else []
