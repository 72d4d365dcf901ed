"""The training loop: dispatch, log, evaluate, save. It knows no algorithm; it runs any mapped step."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from moco_jax import parallel
from moco_jax.feed import Feed
from moco_jax.logs import EVALUATED, RunLog
from moco_jax.stopping import Signals, Stopped

# (state) -> numbers by name; a text named "warning" is for people, and printed as one.
Evaluator = Callable[[Any], Mapping[str, float | str]]
Metrics = dict[str, Any]  # of one call: arrays (steps,)
Unlogged = dict[str, list[float]]  # metrics of steps since the last line of the log


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
    save: Callable[[int, Any, Unlogged], None],
    signals: Signals | None = None,
    unlogged: Unlogged | None = None,
    owed: bool = False,
    rate: str = "learning rate",
    patience: int = 1,
) -> Any:
    """Train from first_step to cadence.total and return the state; `batches` yields one host batch per step.

    Metrics are fetched one call late, and one call is dispatched ahead, so that the device does not wait. Raises
    FloatingPointError at a loss that is not finite, before anything made from it is saved, and where `patience` steps
    in a row, or all up to the end, say that they were "skipped" (`core.guard`); `rate` is what that says should be
    lower. Where `signals` ask for it, the step at which all processes stop is saved, and Stopped raised; evaluations
    that were due are owed. A skipped step is not saved, so the one after it is.

    unlogged: metrics of steps before first_step that no line of the log holds yet, as `save` was given them, so that
    lines are those of a run that was never stopped. owed: evaluations after first_step were not done, and are now.
    """
    step, feed, watch, signals = first_step, Feed(batches, log), Watch(rate, patience), signals or Signals()
    pending: list[Metrics] = [{k: np.asarray(v) for k, v in unlogged.items()}] if unlogged else []
    ready: tuple[int, list[Metrics]] | None = None
    stop: int | None = None  # the signal by which to stop, at the first step that may be saved
    if owed:
        _evaluate(log, step, state, _due(evaluations, cadence, step), signals)
    while step < cadence.total:
        count = cadence.next_call(step, (e.every for e in evaluations))
        state, metrics = step_fn(state, parallel.put_batch(feed.take(count)), data)
        feed.dispatched(metrics)
        first = step == 0  # the first of all gets a line of its own, as it took long
        if step == first_step:
            log.restart(step + count)  # compiling is no training
        if ready is not None:
            watch.write(log, *ready)
            ready = None
        pending.append(metrics)
        step += count
        if first or cadence.due(step, cadence.log):
            ready, pending = (step, pending), []
        evaluators = _due(evaluations, cadence, step)
        stop = stop or signals.asked()
        keep = (stop is not None or cadence.due(step, cadence.save)) and _may_save(step, cadence, metrics)
        if ready is not None and (evaluators or keep):
            watch.write(log, *ready)
            ready = None
        if keep:
            watch.check_loss(step, means(pending))  # before it is saved
        if step == cadence.total:
            watch.check_end(step, step - first_step)
        if evaluators or keep:
            parallel.wait(state)  # both would wait for it, and the steps in flight are training time
        pause = time.perf_counter()
        if keep:  # before an evaluation, which may fail
            save(step, state, _unlogged(pending))
        if stop is not None and keep:
            raise Stopped(stop)
        try:
            _evaluate(log, step, state, evaluators, signals)
        except Stopped as left:
            if keep:
                raise
            if _may_save(step, cadence, metrics):
                save(step, state, _unlogged(pending))
                raise
            stop = left.number
        log.exclude(time.perf_counter() - pause)
    return state


def _may_save(step: int, cadence: Cadence, metrics: Metrics) -> bool:
    """Not after a skipped step before the end: where weights have diverged all are skipped, and good ones would go."""
    if step == cadence.total or "skipped" not in metrics:
        return True
    return not parallel.host(metrics["skipped"])[-1]


def _due(evaluations: Sequence[Evaluation], cadence: Cadence, step: int) -> list[Evaluator]:
    """The evaluators that are called after `step` steps."""
    return [e.evaluator for e in evaluations if cadence.due(step, e.every)]


def _evaluate(log: RunLog, step: int, state: Any, evaluators: Sequence[Evaluator], signals: Signals) -> None:
    """Log what evaluators say of a state, and that all of them did; raises Stopped where a signal comes first."""
    for evaluator in evaluators:
        with signals.leaving():
            found = evaluator(state)
        _say(log, step, found)  # a line is written whole
    if evaluators:
        log.write({"event": EVALUATED, "step": step})


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
                raise self._stuck(step, "train.max_skipped")

    def check_end(self, step: int, done: int) -> None:
        """Raises FloatingPointError where of `done` steps up to the end all were skipped: a run that is stuck."""
        if 1 < self._in_a_row >= done:
            raise self._stuck(step, "all that were left")

    def _stuck(self, step: int, why: str) -> FloatingPointError:
        return FloatingPointError(
            f"loss, gradient or batch statistics were not finite in {self._in_a_row} steps in a row up to {step} "
            f"({why}); such steps change nothing, and the newest checkpoint is from before them: {self._advice}"
        )

    def check_loss(self, step: int, found: dict[str, float]) -> None:
        """Raises FloatingPointError for a mean loss that is not finite, where steps are not skipped for it."""
        if "skipped" not in found and not math.isfinite(found.get("loss", 0.0)):
            raise FloatingPointError(
                f"the loss is {found['loss']} within the steps up to {step}; whatever was saved is from before: "
                f"{self._advice}"
            )


def means(calls: list[Metrics]) -> dict[str, float]:
    """Fetched means over the steps of some calls; none of no call.

    "skipped" is the number of such steps, which the means leave out: not a number where every step was.
    """
    joined = _joined(calls)
    good = joined["skipped"] == 0 if "skipped" in joined else slice(None)
    found = {
        name: float(values[good].mean(dtype=np.float64)) if values[good].size else math.nan
        for name, values in joined.items()
    }
    return found | ({"skipped": float(joined["skipped"].sum())} if "skipped" in joined else {})


def _unlogged(calls: list[Metrics]) -> Unlogged:
    return {name: values.tolist() for name, values in _joined(calls).items()}


def _joined(calls: list[Metrics]) -> dict[str, np.ndarray]:
    """The metrics of every step of some calls: arrays (steps,)."""
    fetched = parallel.host(calls)
    return {name: np.concatenate([c[name] for c in fetched]) for name in (fetched or [{}])[0]}


def _say(log: RunLog, step: int, results: Mapping[str, float | str]) -> None:
    log.write({"step": step, **results})
    numbers = [f"{name} {value:.4g}" for name, value in results.items() if not isinstance(value, str)]
    log.say("  ".join([f"step {step}", *numbers]))
    if "warning" in results:
        log.say(f"warning: {results['warning']}")
