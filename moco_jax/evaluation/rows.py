"""The rows of a transfer table: who is right about which test image, column by column, kept as they are made."""

import functools
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moco_jax import protocols
from moco_jax.checkpoints.store import read_json
from moco_jax.data import loader, sources
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import few, fitting, knn, labelled, logistic, networks
from moco_jax.evaluation.features import extract
from moco_jax.logs import clock

KNN, LINEAR, TUNE = "kNN", "linear", "fine-tune"


class Question(NamedTuple):
    """What all rows are asked."""

    settings: protocols.Transfer
    pair: labelled.Pair
    few: dict[str, list[np.ndarray]]  # {"5": the train images of every draw}
    say: Callable[[str], None]
    hear: Callable[[str], None]  # as `say`, of how far it is

    def draws(self) -> dict[str, list[np.ndarray]]:
        """The train images of every draw by the ending of a column's name: all labels first."""
        endings = {spec: f", {spec} per class" if spec.isdigit() else f", {Path(spec).name}" for spec in self.few}
        return {"": [np.arange(len(self.pair.train.labels))]} | {endings[spec]: rows for spec, rows in self.few.items()}


class Column(NamedTuple):
    """One way to be asked."""

    depends: dict[str, Any]  # what decides its numbers, besides the row and the images
    draws: int  # of labels
    right: Callable[[int, Callable[[str], None]], np.ndarray]  # (draw, who hears how far it is) -> (Q,) who is right


class Row(NamedTuple):
    """One line of the table."""

    name: str
    identity: str  # what decides its numbers: a digest of the network
    columns: dict[str, Column]
    network: frozen.FrozenEncoder | None = None  # what has to be the same afterwards


def of_features(question: Question, get: Callable[[sources.Source], np.ndarray]) -> dict[str, Column]:
    """kNN and linear columns on features get(source) -> (N, D), made when the first of them is."""
    settings, pair = question.settings, question.pair
    labels = pair.train.labels, pair.test.labels

    @functools.cache
    def features() -> logistic.Features:
        return get(pair.train.source), get(pair.test.source)

    def neighbours(draw: int, hear: Callable[[str], None]) -> np.ndarray:
        bank, queries = features()
        how = functools.partial(knn.classify, classes=pair.classes, k=settings.k, temperature=settings.temperature)
        return how(bank, labels[0], queries) == labels[1]

    def linear(draws: list[np.ndarray], draw: int, hear: Callable[[str], None]) -> np.ndarray:
        return logistic.correct(features(), labels, draws[draw], penalty=settings.penalty)

    columns = {KNN: Column({"k": settings.k, "temperature": settings.temperature}, 1, neighbours)}
    for ending, draws in question.draws().items():
        about = {"penalty": settings.penalty, "labels": few.digest(draws)}
        columns[LINEAR + ending] = Column(about, len(draws), functools.partial(linear, draws))
    return columns


def of_networks(question: Question, loaded: frozen.Loaded, *, scratch: bool) -> dict[str, Column]:
    """Columns of whole networks, trained from the encoder or, `scratch`, from what it was before its training."""
    settings, labels = question.settings, question.pair.test.labels
    start = (loaded.untrained if scratch else loaded.trained).network

    @functools.cache
    def fitter() -> networks.Fitter:
        return networks.prepare(
            settings.fit, settings.views, loaded, question.pair, seed=settings.seed, workers=settings.data.workers
        )

    def tuned(draws: list[np.ndarray], draw: int, hear: Callable[[str], None]) -> np.ndarray:
        fitted = functools.partial(networks.fitted, fitter(), start, seed=settings.seed, scratch=scratch)
        return fitted(draws[draw], draw=draw, hear=hear).argmax(1) == labels

    columns = {}
    for ending, draws in question.draws().items():
        about = {"fit": fitting.plain(settings.fit), "recipe": settings.views.recipe, "path": settings.views.path}
        about |= {"seed": settings.seed, "labels": few.digest(draws)}
        columns[TUNE + ending] = Column(about, len(draws), functools.partial(tuned, draws))
    return columns


def encoded(question: Question, encoder: frozen.FrozenEncoder, source: sources.Source) -> np.ndarray:
    """Backbone features (N, D)."""
    settings = question.settings
    return extract(encoder, source, batch_size=settings.batch_size, workers=settings.data.workers)["backbone"]


def pixels(question: Question, encoder: frozen.FrozenEncoder, source: sources.Source) -> np.ndarray:
    """Values of centre views in a row (N, S * S * C), at most `pixels` wide."""
    how, side = encoder.preprocessing, min(question.settings.pixels, encoder.preprocessing.size)
    resize, workers = round(how.resize * side / how.size), question.settings.data.workers
    views = loader.centered(source, size=side, resize=resize, batch_size=256, workers=workers)
    return np.concatenate([rows[:real].reshape(real, -1).astype(np.float32) for rows, real in views])


def kept(row: Row, question: Question, folder: Path, *, number: str) -> dict[str, np.ndarray]:
    """{column: which test images are right (R, Q)} of a row; a draw that was made of the same is read back.

    Raises RuntimeError where the row's encoder is not what it was.
    """
    path = folder / f"{file_of(row.name)}.json"
    stored = read_json(path) or {}
    count, said, before = len(question.pair.test.labels), False, row.network and frozen.digest(row.network.network)
    for name, column in row.columns.items():
        about = {"identity": row.identity, "data": question.pair.digest, **json.loads(json.dumps(column.depends))}
        right = list(stored[name]["right"]) if stored.get(name, {}).get("about") == about else []
        if len(right) == column.draws:
            continue
        if not said:
            question.say(f"row {number}: {row.name}")
            said = True
        began, first = time.monotonic(), len(right)
        for draw in range(first, column.draws):
            which = f"  {name}: {f'draw {draw + 1} of {column.draws}, ' if column.draws > 1 else ''}"
            found = column.right(draw, functools.partial(_hear, question, which))
            if row.network and frozen.digest(row.network.network) != before:
                raise RuntimeError(f"the encoder {row.name} changed while it was evaluated; the draw is not kept")
            right.append(np.packbits(found).tobytes().hex())
            stored[name] = {"about": about, "right": right}
            fitting.keep(path, stored)
            left = (time.monotonic() - began) / (draw + 1 - first) * (column.draws - draw - 1)
            _hear(question, which, f"{found.mean():.1%}  {clock(left)} left of this column")
        question.say(f"  {name}: {np.mean([_bits(text, count).mean() for text in right]):.1%}")
    return {name: np.stack([_bits(text, count) for text in stored[name]["right"]]) for name in row.columns}


def _hear(question: Question, which: str, text: str) -> None:
    question.hear(which + text)


def seldom(say: Callable[[str], None], seconds: float = 20.0) -> Callable[[str], None]:
    """`say` for what is no news: nothing within `seconds` of what was said this way before."""
    last = time.monotonic()

    def hear(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            say(text)
            last = time.monotonic()

    return hear


def file_of(name: str) -> str:
    """A row's name as that of a file."""
    return re.sub(r"[^\w.-]+", "_", name)


def _bits(text: str, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)
