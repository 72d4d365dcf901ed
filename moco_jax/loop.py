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
    patience: int = 1,
) -> Any:
    """Train from first_step to cadence.total and return the state; `batches` yields one host batch per step.

    Metrics are fetched one call late, so that nothing waits for the device between two logs. Raises FloatingPointError
    at a loss that is not finite, before anything made from it is saved, and where `patience` steps in a row say that
    they were "skipped" (`core.guard`); `rate` is what that says should be lower.
    """
    step, watch = first_step, Watch(rate, patience)
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
            watch.write(log, *ready)
            ready = None
        pending.append(metrics)
        step += count
        if first or cadence.due(step, cadence.log):
            ready, pending = (step, pending), []
        evaluators = [e.evaluator for e in evaluations if cadence.due(step, e.every)]
        keep = cadence.due(step, cadence.save)
        if ready is not None and (evaluators or keep):
            watch.write(log, *ready)
            ready = None
        if keep:
            watch.check_loss(step, means(pending))  # before it is saved
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


class Watch:
    """Writes what steps say of themselves, and stops a run that cannot go on; `rate` is what should then be lower."""

    def __init__(self, rate: str, patience: int):
        self._advice = f"look for images that are not finite, or use another --workdir with a lower {rate}"
        self._patience, self._in_a_row = patience, 0

    def write(self, log: RunLog, step: int, calls: list[Metrics]) -> None:
        """Log the means over some calls, which ended at `step`; raises FloatingPointError as `run` says."""
        found = means(calls)
        log.metrics(step, found)
        if "skipped" not in found:
            self.check_loss(step, found)
            return
        if found["skipped"]:
            log.say(f"warning: {found['skipped']:.0f} of the steps up to {step} were not finite and changed nothing")
        for skipped in _joined(calls)["skipped"]:
            self._in_a_row = self._in_a_row + 1 if skipped else 0
            if self._in_a_row >= self._patience:
                raise FloatingPointError(
                    f"loss, gradient or batch statistics were not finite in {self._in_a_row} steps in a row up to {step} "
                    f"(train.max_skipped); such steps change nothing, so what was saved is good: {self._advice}"
                )

    def check_loss(self, step: int, found: dict[str, float]) -> None:
        """Raises FloatingPointError for a mean loss that is not finite, where steps are not skipped for it."""
        if "skipped" not in found and not math.isfinite(found.get("loss", 0.0)):
            raise FloatingPointError(
                f"the loss is {found['loss']} within the steps up to {step}; whatever was saved is from before: "
                f"{self._advice}"
            )


def means(calls: list[Metrics]) -> dict[str, float]:
    """Fetched means over the steps of some calls; none of no call. "skipped" is their number; the others count them not.

    Not a number where every step was skipped.
    """
    joined = _joined(calls)
    good = joined["skipped"] == 0 if "skipped" in joined else slice(None)
    found = {name: float(values[good].mean()) if values[good].size else math.nan for name, values in joined.items()}
    return found | ({"skipped": float(joined["skipped"].sum())} if "skipped" in joined else {})


def _joined(calls: list[Metrics]) -> dict[str, np.ndarray]:
    """The metrics of every step of some calls: arrays (steps,)."""
    fetched = parallel.host(calls)
    return {name: np.concatenate([c[name] for c in fetched]) for name in (fetched or [{}])[0]}


def _evaluate(log: RunLog, step: int, results: Mapping[str, float | str]) -> None:
    log.write({"step": step, **results})
    numbers = [f"{name} {value:.4g}" for name, value in results.items() if not isinstance(value, str)]
    log.say("  ".join([f"step {step}", *numbers]))
    if "warning" in results:
        log.say(f"warning: {results['warning']}")
