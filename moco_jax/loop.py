"""The training loop: dispatch, log, evaluate, save. It knows no algorithm; it runs any mapped step."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from moco_jax import parallel
from moco_jax.logs import RunLog

# (state) -> numbers by name; a text named "warning" is for people, and printed as one.
Evaluator = Callable[[Any], Mapping[str, float | str]]
Metrics = dict[str, Any]  # of one call: arrays (steps,)


class Evaluation(NamedTuple):
    """An evaluator and after how many steps it is called, each time; 0 is never."""

    every: int
    evaluator: Evaluator


@dataclass(frozen=True)
class Cadence:
    """When things happen, in steps; 0 is never."""

    total: int
    per_call: int
    log: int
    save: int

    def due(self, step: int, every: int) -> bool:
        """Whether something of this cadence happens after `step` steps; the last step is always one."""
        return every > 0 and (step % every == 0 or step == self.total)

    def next_call(self, step: int, others: Iterable[int]) -> int:
        """How many steps the next call may take: it ends where something is due, also of `others`' cadences."""
        stops = [self.total, *(step - step % e + e for e in (self.log, self.save, *others) if e)]
        return min(self.per_call, min(stops) - step)


def run(
    step_fn: parallel.Step,
    state: Any,
    batches: Iterator[Any],
    data: Any,
    *,
    first_step: int,
    cadence: Cadence,
    log: RunLog,
    evaluations: Sequence[Evaluation],
    save: Callable[[int, Any], None],
    rate: str = "learning rate",
) -> Any:
    """Train from first_step to cadence.total and return the state; `batches` yields one host batch per step.

    Metrics are fetched one call late, so that nothing waits for the device between two logs. Raises FloatingPointError
    at a loss that is not finite, before anything made from it is saved; `rate` is what that says should be lower.
    """
    step = first_step
    pending: list[Metrics] = []
    ready: tuple[int, list[Metrics]] | None = None
    while step < cadence.total:
        count = cadence.next_call(step, (e.every for e in evaluations))
        batch = parallel.put_batch(jax.tree.map(_stack, *(next(batches) for _ in range(count))))
        state, metrics = step_fn(state, batch, data)
        first = step == first_step
        if first:
            log.restart(step + count)  # compiling is no training
        if ready is not None:
            _write(log, *ready, rate)
            ready = None
        pending.append(metrics)
        step += count
        if first or cadence.due(step, cadence.log):
            ready, pending = (step, pending), []
        evaluators = [e.evaluator for e in evaluations if cadence.due(step, e.every)]
        keep = cadence.due(step, cadence.save)
        if ready is not None and (evaluators or keep):
            _write(log, *ready, rate)
            ready = None
        if keep:
            _check_finite(step, _means(pending), rate)  # before it is saved
        if evaluators or keep:
            parallel.wait(state)  # both would wait for it, and the steps in flight are training time
        pause = time.perf_counter()
        if keep:  # before an evaluation, which may fail
            save(step, state)
        for evaluator in evaluators:
            _evaluate(log, step, evaluator(state))
        log.exclude(time.perf_counter() - pause)
    return state


def _stack(*leaves: np.ndarray) -> np.ndarray:
    return np.stack(leaves)  # (steps, rows, ...)


def _write(log: RunLog, step: int, calls: list[Metrics], rate: str) -> None:
    """Log the means over some calls, which ended at `step`."""
    means = _means(calls)
    log.metrics(step, means)
    _check_finite(step, means, rate)


def _means(calls: list[Metrics]) -> dict[str, float]:
    """Fetched means over the steps of some calls; none of no call."""
    fetched = parallel.host(calls)
    return {name: float(np.mean(np.concatenate([c[name] for c in fetched]))) for name in (fetched or [{}])[0]}


def _check_finite(step: int, means: dict[str, float], rate: str) -> None:
    if not math.isfinite(means.get("loss", 0.0)):
        raise FloatingPointError(
            f"the loss is {means['loss']} within the steps up to {step}; whatever was saved is from before: "
            f"look for images that are not finite, or use another --workdir with a lower {rate}"
        )


def _evaluate(log: RunLog, step: int, results: Mapping[str, float | str]) -> None:
    log.write({"step": step, **results})
    numbers = [f"{name} {value:.4g}" for name, value in results.items() if not isinstance(value, str)]
    log.say("  ".join([f"step {step}", *numbers]))
    if "warning" in results:
        log.say(f"warning: {results['warning']}")
