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
from moco_jax.config import ConfigError
from moco_jax.data import loader, sources
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import few, fitting, knn, labelled, loading, logistic, networks
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
        return {"": [np.arange(len(self.pair.train.labels))]} | {ending(spec): rows for spec, rows in self.few.items()}


def ending(spec: str) -> str:
    """How the names of columns of some labels end."""
    return f", {spec} per class" if spec.isdigit() else f", {Path(spec).name}"


class Column(NamedTuple):
    """One way to be asked."""

    depends: dict[str, Any]  # what decides its numbers, besides the row and the images
    draws: list[str]  # of labels: what tells each from all others
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

    columns = {KNN: Column({"k": settings.k, "temperature": settings.temperature}, ["all"], neighbours)}
    for end, draws in question.draws().items():
        about = {"penalty": settings.penalty}
        columns[LINEAR + end] = Column(about, _told(draws), functools.partial(linear, draws))
    return columns


def of_networks(question: Question, loaded: loading.Loaded, *, scratch: bool) -> dict[str, Column]:
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
    for end, draws in question.draws().items():
        about = {"fit": fitting.plain(settings.fit), "recipe": settings.views.recipe, "path": settings.views.path}
        about |= {"seed": settings.seed}
        columns[TUNE + end] = Column(about, _told(draws), functools.partial(tuned, draws))
    return columns


def _told(draws: list[np.ndarray]) -> list[str]:
    """A draw's number, which decides its seed, and its images."""
    return [f"{number} {few.digest([rows])}" for number, rows in enumerate(draws)]


def encoded(question: Question, encoder: frozen.FrozenEncoder, source: sources.Source) -> np.ndarray:
    """Backbone features (N, D)."""
    settings = question.settings
    return extract(encoder, source, batch_size=settings.batch_size, workers=settings.data.workers)["backbone"]


def pixels(question: Question, encoder: frozen.FrozenEncoder, source: sources.Source) -> np.ndarray:
    """Values of centre views in a row (N, S * S * C), at most `pixels` wide."""
    how, side = encoder.preprocessing, min(question.settings.pixels, encoder.preprocessing.size)
    small, workers = how._replace(size=side, resize=round(how.resize * side / how.size)), question.settings.data.workers
    views = loader.centered(source, small.view, batch_size=256, workers=workers)
    return np.concatenate([rows[:real].reshape(real, -1).astype(np.float32) for rows, real in views])


def kept(row: Row, question: Question, folder: Path, *, number: str) -> dict[str, np.ndarray]:
    """{column: which test images are right (R, Q)} of a row; a draw that was made of the same is read back.

    Raises ConfigError where the row's encoder is not what it was.
    """
    path = folder / f"{file_of(row.name)}.json"
    stored = read_json(path) or {}
    count, said, before = len(question.pair.test.labels), False, row.network and frozen.digest(row.network.network)
    for name, column in row.columns.items():
        about = {"identity": row.identity, "data": question.pair.digest, **json.loads(json.dumps(column.depends))}
        right = _before(stored.get(name), about, count, path)
        missing = [draw for draw, told in enumerate(column.draws) if told not in right]
        if missing and not said:
            question.say(f"row {number}: {row.name}")
            said = True
        began = time.monotonic()
        for done, draw in enumerate(missing, start=1):
            which = f"  {name}: {f'draw {draw + 1} of {len(column.draws)}, ' if len(column.draws) > 1 else ''}"
            found = column.right(draw, functools.partial(_hear, question, which))
            if row.network and frozen.digest(row.network.network) != before:
                raise ConfigError(
                    f"the encoder {row.name} changed while it was evaluated; the draw is not kept: evaluate again"
                )
            right[column.draws[draw]] = np.packbits(found).tobytes().hex()
            stored[name] = {"about": about, "right": right}
            fitting.keep(path, stored)
            left = (time.monotonic() - began) / done * (len(missing) - done)
            _hear(question, which, f"{found.mean():.1%}  {clock(left)} left of this column")
        if missing:
            question.say(f"  {name}: {np.mean([_bits(right[told], count).mean() for told in column.draws]):.1%}")
    return {
        name: np.stack([_bits(stored[name]["right"][told], count) for told in column.draws])
        for name, column in row.columns.items()
    }


def _before(column: Any, about: dict[str, Any], count: int, path: Path) -> dict[str, str]:
    """{draw: its bits} that a file holds of a column which depends on the same; ConfigError for a damaged file."""
    if column is None:
        return {}
    if isinstance(column, dict) and isinstance(column.get("about"), dict) and isinstance(column.get("right"), dict):
        if column["about"] != about:
            return {}
        digits = 2 * -(-count // 8)  # in hexadecimal, of whole bytes
        if all(isinstance(t, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", t) for t in column["right"].values()):
            return dict(column["right"])
    raise ConfigError(f"{path} is damaged or of another version; delete it, and its row is made again")


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
