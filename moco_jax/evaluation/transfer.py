"""Was it worth it? Encoders beside pixels, no training and plain supervised training, in one table."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax import parallel, protocols
from moco_jax.config import ConfigError
from moco_jax.data import opening, sources
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import few, fitting, intervals, knn, labelled, loading, networks
from moco_jax.evaluation.rows import (
    KNN,
    LINEAR,
    TUNE,
    Question,
    Row,
    encoded,
    ending,
    file_of,
    kept,
    of_features,
    of_networks,
    seldom,
)
from moco_jax.evaluation.rows import pixels as flat
from moco_jax.reports import table

PIXELS, UNTRAINED, SCRATCH = "pixels", "untrained", "supervised from scratch"


def run(
    settings: protocols.Transfer,
    paths: Sequence[str],
    workdir: str | Path,
    *,
    load: loading.Load | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """The table as text; also WORKDIR/table.json and table.csv. What was made before of the same is read back.

    `load` makes an encoder of a path (None: of a run's folder or a file of weights, `loading.load`). Raises ConfigError
    for what cannot be, before anything is encoded.
    """
    check(settings, paths)
    loading.check_no_run(workdir)
    if (Path(workdir) / "result.json").exists():
        raise ConfigError(f"{workdir} holds another evaluation, no table; give another --workdir")
    encoders = {path: (load or loading.load)(path) for path in paths}
    settings = _alike(settings, encoders)
    how = settings.views
    encoders = {p: e.resized(size=how.size, resize=how.resize, filter=how.filter) for p, e in encoders.items()}
    question = _question(settings, encoders, say)
    if settings.finetune:
        say(_announced(question, len(paths) + 1))
    lines, folder = _rows(question, encoders), Path(workdir)
    with fitting.alone(folder):
        found = {
            row.name: kept(row, question, folder / "rows", number=f"{i} of {len(lines)}")
            for i, row in enumerate(lines, start=1)
        }
        made = _table(question, found, reference=_names(paths)[paths[0]])
        fitting.keep(folder / "table.json", table.to_json(made))
        if parallel.is_first_process():
            (folder / "table.csv").write_text(table.csv_text(made))
    shown = f"; `moco-jax report {paths[0]}` shows them" if Path(workdir).parent == Path(paths[0]) else ""
    return f"{table.text(made)}\nnumbers in {workdir}/table.csv and table.json{shown}"


def check(settings: protocols.Transfer, paths: Sequence[str]) -> None:
    """Raises ConfigError for a number that cannot be, and for no or equal encoders."""
    if not paths or len({os.path.normpath(path) for path in paths}) < len(paths):
        raise ConfigError(
            f"--encoders={','.join(paths)}: name one or more different ones, such as --encoders=runs/mine,runs/other"
        )
    taken = [file_of(name) for name in (PIXELS, UNTRAINED, SCRATCH, *_names(paths).values())]
    for path, name in _names(paths).items():
        if taken.count(file_of(name)) > 1:
            raise ConfigError(f"--encoders: {path} would share its row {name!r} with another; rename its folder")
    for name in ("draws", "k", "pixels", "batch_size"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, not {getattr(settings, name)}")
    for name in ("temperature", "penalty"):
        if not knn.TINY <= getattr(settings, name) < math.inf:
            raise ConfigError(f"{name} must be {knn.TINY:g} or more, not {getattr(settings, name)}")
    if not 0 <= settings.seed < 2**32:
        raise ConfigError(f"seed must lie in 0..2**32 - 1, not {settings.seed}")
    if len(set(settings.labels)) < len(settings.labels) or "all" in settings.labels:
        raise ConfigError(f"labels {settings.labels} must differ; all labels are columns of their own")
    for spec in settings.labels:
        few.check(spec)
        alike = [other for other in settings.labels if ending(other) == ending(spec)]
        if len(alike) > 1:
            raise ConfigError(f"labels {' and '.join(alike)} would share a column's name; rename one of the files")
    networks.check_fit(settings.fit)


def _alike(settings: protocols.Transfer, encoders: dict[str, loading.Loaded]) -> protocols.Transfer:
    """Settings in which nothing is left to each encoder: all rows see the same views, in the same groups.

    Raises ConfigError where encoders were trained otherwise and the settings do not say which it shall be.
    """
    how, fit = settings.views, settings.fit
    asked: dict[str, tuple[Any, Callable[[loading.Loaded], Any]]] = {
        "views.size": (how.size, lambda e: e.trained.preprocessing.size),
        "views.resize": (how.resize, lambda e: e.trained.preprocessing.resize),
        "views.filter": (how.filter, lambda e: e.trained.preprocessing.filter),
        "views.path": (how.path, lambda e: e.config.data.path),
        "fit.group_size": (fit.group_size, lambda e: e.config.bn.group_size),
    }
    chosen: dict[str, Any] = {}
    for key, (value, own) in asked.items():
        theirs = {path: own(loaded) for path, loaded in encoders.items()}
        if value is None and len(set(theirs.values())) > 1 and not (key == "views.resize" and how.size):
            listed = ", ".join(f"{v} in {path}" for path, v in theirs.items())
            raise ConfigError(f"encoders differ in {key} ({listed}): say which all rows shall have, by --config.{key}=")
        chosen[key] = next(iter(theirs.values())) if value is None else value
    if how.size and how.resize is None:
        chosen["views.resize"] = max(how.size, chosen["views.resize"])
    views = dataclasses.replace(how, **{k: chosen[f"views.{k}"] for k in ("size", "resize", "filter", "path")})
    return dataclasses.replace(settings, views=views, fit=dataclasses.replace(fit, group_size=chosen["fit.group_size"]))


def _question(
    settings: protocols.Transfer, encoders: dict[str, loading.Loaded], say: Callable[[str], None]
) -> Question:
    """The labelled images and the draws; ConfigError where an encoder does not fit them."""
    first = next(iter(encoders.values()))
    for path, loaded in encoders.items():
        if loaded.values[:2] != first.values[:2]:
            kinds = [f"{e.values.dtype} images of {e.values.channels} channels" for e in (first, loaded)]
            raise ConfigError(f"encoder {path} takes {kinds[1]}, and the first one {kinds[0]}: make a table for each")
        if settings.finetune:
            networks.check_encoder(settings.fit, loaded, scratch=loaded is first)
    pair = labelled.open_pair(
        settings.data, first.config.data, seed=settings.seed, own_source=first.source, like=first.values
    )
    for path, loaded in list(encoders.items())[1:]:
        own = loaded.config.data
        if loaded.source or not opening.names_images(own) or own == first.config.data:
            continue
        seen, name = labelled.pretrained(pair.test.source, settings.data, own), _names(list(encoders))[path]
        if isinstance(seen, str):
            pair = pair._replace(test_is=f"{pair.test_is}; whether {name} was pretrained on it is not known ({seen})")
        elif seen:
            pair = pair._replace(test_is=f"{pair.test_is}; {seen:,} by {name}")
    count = len(pair.train.labels)
    if settings.k > count:
        raise ConfigError(
            f"k {settings.k} neighbours, but there are {count} train images: use that or less, such as "
            f"--config.k={min(5, count)}"
        )
    return Question(settings, pair, _draws(settings, pair), say, seldom(say))


def _draws(settings: protocols.Transfer, pair: labelled.Pair) -> dict[str, list[np.ndarray]]:
    """{"5": the train images of every draw}; ConfigError that says which numbers of labels there can be."""
    labels, names = pair.train.labels, sources.names_of(pair.train.source)
    draw = functools.partial(few.rows, labels, seed=settings.seed, names=names, class_names=pair.class_names)
    try:
        return {
            spec: [draw(spec, draw=i) for i in range(1 if few.is_list(spec) else settings.draws)]
            for spec in settings.labels
        }
    except ConfigError as error:
        least = np.unique(labels, return_counts=True)[1].min()
        fitting_ones = tuple(spec for spec in settings.labels if not spec.isdigit() or int(spec) <= least)
        if fitting_ones == settings.labels:
            raise
        raise ConfigError(f'{error}, such as --config.labels="{fitting_ones}"') from None


def _announced(question: Question, networks: int) -> str:
    """What takes the time, in numbers that a first image rate turns into hours."""
    fit, draws = question.settings.fit, [rows for draws in question.draws().values() for rows in draws]
    how = {"batch_size": fit.batch_size, "epochs": fit.epochs, "least_steps": fit.least_steps}
    images = networks * fit.batch_size * sum(fitting.plan(rows, **how).total for rows in draws)
    return (
        f"whole networks: {networks} x {len(draws)} fits, {images:,} training images in all "
        "(--config.finetune=False leaves them out)"
    )


def _names(paths: Sequence[str]) -> dict[str, str]:
    """What rows of encoders are called: the folder's name where that tells them apart, else the path."""
    short = [Path(path).name for path in paths]
    return {path: s if short.count(s) == 1 else path for path, s in zip(paths, short, strict=True)}


def _rows(question: Question, encoders: dict[str, loading.Loaded]) -> list[Row]:
    first = next(iter(encoders.values()))
    seen = str(first.trained.preprocessing)
    digest = f"{frozen.digest(first.untrained.network)} {seen}"
    flattened = functools.partial(flat, question, first.trained)
    rows = [
        Row(PIXELS, f"{seen} {question.settings.pixels}", of_features(question, flattened)),
        Row(UNTRAINED, digest, of_features(question, functools.partial(encoded, question, first.untrained))),
    ]
    for path, name in _names(list(encoders)).items():
        loaded = encoders[path]
        columns = of_features(question, functools.partial(encoded, question, loaded.trained))
        if question.settings.finetune:
            columns |= of_networks(question, loaded, scratch=False)
        its = f"{frozen.digest(loaded.trained.network)} {loaded.trained.preprocessing}"
        rows.append(Row(name, its, columns, loaded.trained))
    if question.settings.finetune:
        rows.append(Row(SCRATCH, digest, of_networks(question, first, scratch=True)))
    return rows


def _table(question: Question, found: dict[str, dict[str, np.ndarray]], *, reference: str) -> table.Table:
    """Means, intervals, and what the reference row has more than each other one, on the same draws and images."""
    groups, endings = question.pair.test.groups, list(question.draws())
    methods = [LINEAR, TUNE] if question.settings.finetune else [LINEAR]
    columns = [KNN, *methods, *(method + ending for method in methods for ending in endings if ending)]

    def cell(name: str, column: str) -> table.Cell:
        right, ours = found[name].get(column), found[reference].get(column)
        if right is None:
            return table.Cell(None, None, None, "-")
        one = intervals.share(right, groups)
        more = None if name == reference or ours is None else intervals.difference(ours, right, groups)._asdict()
        return table.Cell(one.mean, one.half_width, more, "")

    rows = [(name, [cell(name, column) for column in columns]) for name in found]
    return table.Table(columns, rows, _caption(question, reference), _notes(question, reference))


def _caption(question: Question, reference: str) -> str:
    pair = question.pair
    return (
        f"top-1 accuracy on {len(pair.test.labels):,} test images ({pair.test_is}), {len(pair.train.labels):,} train "
        f"images, {pair.classes} classes; differences: {reference} minus the row"
    )


def _notes(question: Question, reference: str) -> list[str]:
    settings, what = question.settings, "test images" if question.pair.test.groups is None else "groups of test images"
    listed = [Path(spec).name for spec in settings.labels if few.is_list(spec)]
    once = f"; one run on the list{'s' if len(listed) > 1 else ''} {', '.join(listed)}" if listed else ""
    notes = [
        f"95 % intervals over {what} and, with few labels, over {settings.draws} draws of labels, the same for every "
        f"row, seed {settings.seed}{once}; all labels: one run",
        f"{KNN}: k {settings.k}, T {settings.temperature:g}, backbone features; {LINEAR}: logistic regression on "
        f"standardised backbone features, C {settings.penalty:g}; the last epoch and these settings, whatever the test "
        "images say",
        f"{PIXELS}: centre views of at most {settings.pixels} pixels; {UNTRAINED}: that of {reference} as it began",
    ]
    if settings.finetune:
        fit = settings.fit
        notes.append(
            f"{TUNE} and {SCRATCH}: {fit.epochs} epochs or {fit.least_steps} steps, batches of {fit.batch_size}, "
            f"views {settings.views.recipe or 'centre'}, rates {fit.learning_rate:g} (body), "
            f"{fit.head_learning_rate:g} (head), {fit.scratch_learning_rate:g} (scratch)"
        )
    return notes
