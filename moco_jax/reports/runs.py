"""A run's folder as numbers per epoch, whether the run is complete, was killed, or is still going."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from moco_jax import places
from moco_jax.config import Config, ConfigError, read_stored

LOGGED = 0.5  # share of an epoch's steps that must be in the log for a mean: a kill loses at most one line


class Run(NamedTuple):
    """What a run's folder says; epochs count from 1, as "after the first epoch"."""

    config: Config
    steps_per_epoch: int
    total: int  # steps of the whole run
    step: int  # steps done, as far as the log knows
    loss: dict[int, float]  # by epoch: mean over its steps; nan where one of them was not finite
    knn_top1: dict[int, float]  # by epoch: percent, after its last step
    series: dict[str, dict[int, float]]  # every logged number, by name and step, as logged; nan where it was not finite
    images: int | None  # trained on; None where the log's beginning is lost
    chance: float | None  # the loss of a guess, such as ln(K + 1); None where the log's beginning is lost
    objects: dict[str, str]  # labels of what was given from Python, by argument; "" where the config's own is used
    unreadable: int  # lines left out

    @property
    def epochs(self) -> int:
        """Epochs that are over."""
        return self.step // self.steps_per_epoch

    @property
    def complete(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total


class Span(NamedTuple):
    """The mean loss over steps first + 1 to last."""

    first: int
    last: int
    loss: float


def read(folder: Path) -> Run:
    """The run in a folder, by its config.json and its log; raises ConfigError where there is none."""
    about = _about(folder)
    try:
        config, total = read_stored(about["config"]), int(about["total_steps"])
    except KeyError as error:
        raise ConfigError(f"{folder}/config.json lacks {error}: was it written by moco_jax?") from None
    per_epoch = total // config.train.epochs
    records, unreadable = _records(folder)
    spans, series, step = _history(records)
    means = {epoch: _mean(spans, epoch, per_epoch) for epoch in range(1, step // per_epoch + 1)}
    loss = {epoch: mean for epoch, mean in means.items() if mean is not None}
    knn = series.get("knn_top1", {})
    top1 = {at // per_epoch: 100 * share for at, share in knn.items() if at % per_epoch == 0}
    images = next((r["images"] for r in reversed(records) if isinstance(r.get("images"), int)), None)
    chance = next((r["chance"] for r in reversed(records) if isinstance(r.get("chance"), float)), None)
    objects = dict(about.get("objects", {}))
    return Run(config, per_epoch, total, step, loss, top1, series, images, chance, objects, unreadable)


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} holds no config.json: give the folder of a run, the one that train wrote to"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}/config.json cannot be read: {error}") from None
    if not isinstance(about, dict):
        raise ConfigError(f"{folder}/config.json is no description of a run")
    return about


def _records(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a log, and how many lines are none: a kill may cut a line short.

    The last line is not counted while its end is missing: the run is still writing it.
    """
    try:
        *lines, rest = places.read_log(folder).split("\n")
    except FileNotFoundError:
        raise ConfigError(f"{places.log_of(folder)} does not exist: the run has logged nothing yet") from None
    except OSError as error:
        raise ConfigError(f"{places.log_of(folder)} cannot be read: {error.strerror or error}") from None
    read = [_object(line) for line in lines if line.strip()]
    whole = [r for r in [*read, _object(rest)] if r is not None]
    return whole, read.count(None)


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None


def _history(records: list[dict[str, Any]]) -> tuple[list[Span], dict[str, dict[int, float]], int]:
    """Losses over spans of steps, every number by name and step, and the last step.

    What a killed run repeats replaces the first try.
    """
    spans: list[Span] = []
    series: dict[str, dict[int, float]] = {}
    at = 0
    for record in records:
        step = record["step"]
        again = step if record.get("event") == "start" else step - 1  # a first line whose "start" was cut short
        if record.get("event") == "start" or ("loss" in record and step <= at):
            spans = [s._replace(last=min(s.last, again)) for s in spans if s.first < again]
            series = {name: {s: v for s, v in values.items() if s <= again} for name, values in series.items()}
            at = again
        if "loss" in record:
            spans.append(Span(at, step, _number(record["loss"])))
            at = step
        if "event" in record:
            continue
        for name, value in record.items():
            if name != "step" and not isinstance(value, str | list | dict):
                series.setdefault(name, {})[step] = _number(value)
    return spans, {n: v for n, v in series.items() if v}, max(at, *series.get("knn_top1", {}), 0)


def _number(value: Any) -> float:
    """A logged number; nan is what the log has null for, and for anything that it cannot have written."""
    return float(value) if isinstance(value, int | float) else math.nan


def _mean(spans: list[Span], epoch: int, per_epoch: int) -> float | None:
    """Mean over the steps of an epoch, lines weighted by how many of them they hold; None where too few are logged.

    A line over the end of an epoch counts for both; one longer than two epochs says nothing of any.
    """
    spans = [s for s in spans if s.last - s.first <= 2 * per_epoch]
    parts = list(_parts(spans, (epoch - 1) * per_epoch, epoch * per_epoch))
    steps = sum(count for count, _ in parts)
    return sum(count * loss for count, loss in parts) / steps if steps >= LOGGED * per_epoch else None


def _parts(spans: list[Span], first: int, last: int) -> Iterator[tuple[int, float]]:
    for span in spans:
        if math.isnan(span.loss) and span.last > last:
            continue  # what was not finite may lie behind
        count = min(span.last, last) - max(span.first, first)
        if count > 0:
            yield count, span.loss
