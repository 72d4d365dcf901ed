"""Was it worth it? Encoders beside pixels, no training and plain supervised training, in one table."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moco_jax import parallel, protocols
from moco_jax.checkpoints.store import read_json
from moco_jax.config import ConfigError
from moco_jax.data import loader, sources
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import few, finetune, fitting, intervals, knn, labelled, logistic
from moco_jax.evaluation.features import extract
from moco_jax.reports import table

PIXELS, UNTRAINED, SCRATCH = "pixels", "untrained", "supervised from scratch"
KNN, LINEAR, TUNE = "kNN", "linear", "fine-tune"


class Row(NamedTuple):
    """One line of the table: a name, what decides its numbers, and how they are made."""

    name: str
    identity: str  # digest of the network, or what else it depends on
    make: Callable[[], dict[str, list[float]]]  # {column: of every draw an accuracy, or of every test image 0 or 1}


class Task(NamedTuple):
    """What all rows are judged by."""

    settings: protocols.Transfer
    pair: labelled.Pair
    few: dict[str, list[np.ndarray]]  # {"5": the train images of every draw}
    say: Callable[[str], None]

    @property
    def everything(self) -> np.ndarray:
        """All train images."""
        return np.arange(len(self.pair.train.labels))


def run(
    settings: protocols.Transfer,
    paths: Sequence[str],
    workdir: str | Path,
    *,
    load: frozen.Load | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """The table as text; also WORKDIR/table.json and table.csv. A row that is there already is read back.

    `load` makes an encoder of a path (None: of a run's folder, `encoder.load`). Raises ConfigError for what cannot be,
    before anything is encoded.
    """
    check(settings, paths)
    how = settings.views
    encoders = {path: (load or frozen.load)(path).resized(size=how.size, resize=how.resize) for path in paths}
    task = _task(settings, encoders, say)
    rows, folder = _rows(task, encoders), Path(workdir) / "rows"
    found = {row.name: _stored(row, task, folder, i + 1, len(rows)) for i, row in enumerate(rows)}
    made = _table(task, found, reference=_names(encoders)[paths[0]])
    fitting.keep(Path(workdir) / "table.json", table.to_json(made))
    if parallel.is_first_process():
        (Path(workdir) / "table.csv").write_text(table.csv_text(made))
    shown = f"; `moco-jax report {paths[0]}` shows them" if Path(workdir).parent == Path(paths[0]) else ""
    return f"{table.text(made)}\nnumbers in {workdir}/table.csv and table.json{shown}"


def check(settings: protocols.Transfer, paths: Sequence[str]) -> None:
    """Raises ConfigError for a number that cannot be, and for no or equal encoders."""
    if not paths or len(set(paths)) < len(paths):
        raise ConfigError(
            f"--encoders={','.join(paths)}: name one or more different ones, such as --encoders=runs/mine,runs/other"
        )
    for name in ("draws", "k", "pixels", "resamples", "batch_size"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, not {getattr(settings, name)}")
    for name in ("temperature", "penalty"):
        if not 0 < getattr(settings, name) < math.inf:
            raise ConfigError(f"{name} must be above 0, not {getattr(settings, name)}")
    if not 0 <= settings.seed < 2**32:
        raise ConfigError(f"seed must lie in 0..2**32 - 1, not {settings.seed}")
    if len(set(settings.labels)) < len(settings.labels) or "all" in settings.labels:
        raise ConfigError(f"labels {settings.labels} must differ; all labels are columns of their own")
    finetune.check_fit(settings.fit)


def _task(settings: protocols.Transfer, encoders: dict[str, frozen.Loaded], say: Callable[[str], None]) -> Task:
    """The labelled images and the draws; ConfigError where an encoder does not fit them."""
    first = next(iter(encoders.values()))
    for loaded in encoders.values():
        pair = labelled.open_pair(
            settings.data, first.config.data, seed=settings.seed, own_source=loaded.source, like=loaded.values
        )
        if settings.finetune:
            finetune.check_encoder(settings.fit, loaded, scratch=loaded is first)
    count = len(pair.train.labels)
    if settings.k > count:
        raise ConfigError(f"k {settings.k} neighbours, but there are {count} train images; use that or less")
    names = sources.names_of(pair.train.source)
    draws = {
        spec: [
            few.rows(pair.train.labels, spec, seed=settings.seed, draw=draw, names=names)
            for draw in range(1 if Path(spec).is_file() else settings.draws)
        ]
        for spec in settings.labels
    }
    return Task(settings, pair, draws, say)


def _names(encoders: dict[str, frozen.Loaded]) -> dict[str, str]:
    """What rows of encoders are called: the folder's name where that tells them apart, else the path."""
    short = [Path(path).name for path in encoders]
    return {path: s if short.count(s) == 1 else path for path, s in zip(encoders, short, strict=True)}


def _rows(task: Task, encoders: dict[str, frozen.Loaded]) -> list[Row]:
    first = next(iter(encoders.values()))
    digest = frozen.digest(first.untrained.network)
    tuned = functools.partial(_tuned, task, first, first.untrained, scratch=True)
    rows = [
        Row(PIXELS, f"{first.trained.preprocessing}", lambda: _of_features(task, _pixels(task, first.trained))),
        Row(UNTRAINED, digest, lambda: _of_features(task, _features(task, first.untrained))),
    ]
    for path, name in _names(encoders).items():
        rows.append(
            Row(
                name,
                frozen.digest(encoders[path].trained.network),
                functools.partial(_encoder, task, encoders[path], path),
            )
        )
    return rows + ([Row(SCRATCH, digest, tuned)] if task.settings.finetune else [])


def _stored(row: Row, task: Task, folder: Path, number: int, count: int) -> dict[str, list[float]]:
    """A row's numbers, read back where they were made by the same settings and network."""
    path = folder / (re.sub(r"[^\w.-]+", "_", row.name) + ".json")
    about = {"settings": fitting.plain(task.settings), "identity": row.identity, "test": task.pair.test_is}
    stored = read_json(path)
    if stored is None or stored.get("about") != about:
        task.say(f"row {number} of {count}: {row.name}")
        stored = {"about": about, "columns": row.make()}
        fitting.keep(path, stored)
    columns: dict[str, list[float]] = stored["columns"]
    return columns


def _encoder(task: Task, loaded: frozen.Loaded, path: str) -> dict[str, list[float]]:
    """The columns of a trained encoder; RuntimeError where it is another one afterwards."""
    before = frozen.digest(loaded.trained.network)
    columns = _of_features(task, _features(task, loaded.trained))
    if task.settings.finetune:
        columns |= _tuned(task, loaded, loaded.trained, scratch=False)
    if frozen.digest(loaded.trained.network) != before:
        raise RuntimeError(f"the encoder {path} changed while it was evaluated; the row is not kept")
    return columns


def _of_features(task: Task, features: logistic.Features) -> dict[str, list[float]]:
    """kNN and linear classifiers on features of the train (M, D) and test images (Q, D)."""
    settings, labels = task.settings, (task.pair.train.labels, task.pair.test.labels)
    predicted = knn.classify(
        features[0],
        labels[0],
        features[1],
        classes=task.pair.classes,
        k=settings.k,
        temperature=settings.temperature,
    )
    linear = functools.partial(logistic.correct, features, labels, penalty=settings.penalty)
    columns = {
        KNN: _said(task, KNN, _bits(predicted == labels[1])),
        LINEAR: _said(task, LINEAR, _bits(linear(task.everything))),
    }
    for spec, draws in task.few.items():
        column = f"{LINEAR}, {_words(spec)}"
        columns[column] = _said(task, column, [float(linear(rows).mean()) for rows in draws])
    return columns


def _tuned(task: Task, loaded: frozen.Loaded, start: frozen.FrozenEncoder, *, scratch: bool) -> dict[str, list[float]]:
    """Whole networks trained on all and on few labels."""
    settings, labels = task.settings, task.pair.test.labels
    fitter = finetune.prepare(
        settings.fit, settings.views, loaded, task.pair, seed=settings.seed, workers=settings.data.workers
    )
    fitted = functools.partial(finetune.fitted, fitter, start.network, seed=settings.seed, scratch=scratch)
    columns = {TUNE: _said(task, TUNE, _bits(fitted(task.everything, draw=0).argmax(1) == labels))}
    for spec, draws in task.few.items():
        column = f"{TUNE}, {_words(spec)}"
        right = [float(np.mean(fitted(rows, draw=draw).argmax(1) == labels)) for draw, rows in enumerate(draws)]
        columns[column] = _said(task, column, right)
    return columns


def _features(task: Task, encoder: frozen.FrozenEncoder) -> logistic.Features:
    get = functools.partial(extract, encoder, batch_size=task.settings.batch_size, workers=task.settings.data.workers)
    return get(task.pair.train.source)["backbone"], get(task.pair.test.source)["backbone"]


def _pixels(task: Task, encoder: frozen.FrozenEncoder) -> logistic.Features:
    """Values of centre views in a row (M, S * S * C), at most `pixels` wide."""
    how, side = encoder.preprocessing, min(task.settings.pixels, encoder.preprocessing.size)
    resize = round(how.resize * side / how.size)

    def get(source: sources.Source) -> np.ndarray:
        views = loader.centered(source, size=side, resize=resize, batch_size=256, workers=task.settings.data.workers)
        return np.concatenate([rows[:real].reshape(real, -1).astype(np.float32) for rows, real in views])

    return get(task.pair.train.source), get(task.pair.test.source)


def _table(task: Task, found: dict[str, dict[str, list[float]]], *, reference: str) -> table.Table:
    """Means, intervals, and what the reference row has more than each other one, over the same draws."""
    settings, pair = task.settings, task.pair
    methods = [LINEAR, TUNE] if settings.finetune else [LINEAR]
    few_columns = [f"{method}, {_words(spec)}" for method in methods for spec in task.few]
    columns = [KNN, *methods, *few_columns]

    def cell(name: str, column: str) -> table.Cell:
        values, ours = found[name].get(column), found[reference].get(column)
        if values is None:
            return table.Cell(None, None, None, "-")
        drawn = column in few_columns
        groups = pair.test.groups
        one = (
            intervals.over_draws(values)
            if drawn
            else intervals.resampled(np.asarray(values), groups, resamples=settings.resamples, seed=settings.seed)
        )
        difference = None
        if name != reference and ours is not None:
            difference = (
                intervals.paired(ours, values)
                if drawn
                else intervals.paired_resampled(
                    np.asarray(ours), np.asarray(values), groups, resamples=settings.resamples, seed=settings.seed
                )
            )
        return table.Cell(one.mean, one.half_width, None if difference is None else difference._asdict(), "")

    rows = [(name, [cell(name, column) for column in columns]) for name in found]
    return table.Table(columns, rows, _caption(task, reference), _notes(task))


def _caption(task: Task, reference: str) -> str:
    pair = task.pair
    return (
        f"top-1 accuracy on {len(pair.test.labels):,} test images ({pair.test_is}), {len(pair.train.labels):,} train "
        f"images, {pair.classes} classes; differences: {reference} minus the row"
    )


def _notes(task: Task) -> list[str]:
    settings = task.settings
    what = "test images" if task.pair.test.groups is None else "groups of test images"
    notes = [
        f"few labels: mean over {settings.draws} paired draws of labels, seed {settings.seed}, and its 95 % interval "
        "(Student's t); all labels: 95 % interval over "
        f"{settings.resamples} paired resamples of {what}, one run",
        f"{KNN}: k {settings.k}, T {settings.temperature:g}, backbone features; {LINEAR}: logistic regression on "
        f"standardised backbone features, C {settings.penalty:g}; nothing was chosen on the test images",
    ]
    if settings.finetune:
        fit = settings.fit
        notes.append(
            f"{TUNE} and {SCRATCH}: {fit.epochs} epochs, batches of {fit.batch_size} images, views "
            f"{settings.views.recipe or 'centre'}, rates {fit.learning_rate:g} (body), {fit.head_learning_rate:g} "
            f"(head), {fit.scratch_learning_rate:g} (scratch), the last epoch"
        )
    return notes


def _words(spec: str) -> str:
    return f"{spec} per class" if spec.isdigit() else spec


def _said(task: Task, column: str, values: list[float]) -> list[float]:
    """The values of a column, which may have taken long, once their mean is told."""
    task.say(f"  {column}: {np.mean(values):.1%}")
    return values


def _bits(right: np.ndarray) -> list[float]:
    return right.astype(int).tolist()
