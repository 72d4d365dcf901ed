"""kNN of a frozen encoder as a command: several k, both features, every setting beside the numbers."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax import protocols
from moco_jax.config import ConfigError, unknown
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import kept, knn, labelled, loading
from moco_jax.evaluation.features import FEATURES, extract


def run(
    settings: protocols.Knn,
    checkpoint: str | Path,
    workdir: str | Path,
    *,
    load: loading.Load | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """The numbers as text; made once, then read back from `workdir`/result.json.

    `load` makes an encoder of the path (None: of a run's folder or a file of weights, `loading.load`); `say` hears what
    it will take before anything but one batch is encoded, and that an encoder has no head. Raises ConfigError for a
    number that cannot be, for more neighbours than train images, for what `labelled.open_pair` refuses for a folder
    of another evaluation, and where the encoder changed meanwhile (`kept.result`).
    """
    check(settings)
    loaded = (load or loading.load)(checkpoint)
    settings = _with_features_of(settings, loaded, say)
    pair = labelled.open_pair(settings.data, loaded.config.data, seed=0, own_source=loaded.source, like=loaded.values)
    if max(settings.k) > len(pair.train.labels):
        few_enough = tuple(k for k in settings.k if k <= len(pair.train.labels)) or (1,)
        raise ConfigError(
            f"k {max(settings.k)} neighbours, but the bank, {pair.train.source.name}, holds {len(pair.train.labels)} "
            f"images; use that many or fewer, such as --config.k='{few_enough}'"
        )
    network = loaded.trained.network
    about = kept.question(settings, loaded, network, pair)

    def make() -> dict[str, Any]:
        return {"test": pair.test_is, **_measured(settings, loaded.trained, pair, say)}

    stored = kept.result(about, workdir, make, network, loaded, checkpoint=checkpoint if load is None else None)
    return kept.said(text, stored, workdir, loaded.named(checkpoint))


def _with_features_of(settings: protocols.Knn, loaded: loading.Loaded, say: Callable[[str], None]) -> protocols.Knn:
    """Settings without the head of an encoder that has none; ConfigError where nothing else was asked for."""
    if loaded.has_head or "head" not in settings.features:
        return settings
    if settings.features == ("head",):
        loaded.check_feature("head", "features")
    say(f"encoder {loaded.trained.label} has no projection head: backbone features alone")
    return dataclasses.replace(settings, features=tuple(name for name in settings.features if name != "head"))


def check(settings: protocols.Knn) -> None:
    """Raises ConfigError for a number that cannot be."""
    if not settings.k or min(settings.k) < 1 or len(set(settings.k)) < len(settings.k):
        raise ConfigError(f"k must hold one or more different numbers above 0, not {settings.k}")
    if not knn.TINY <= settings.temperature < math.inf:
        raise ConfigError(f"temperature must be {knn.TINY:g} or more, not {settings.temperature}")
    if not settings.features or len(set(settings.features)) < len(settings.features):
        raise ConfigError(f"features must name one or both of {', '.join(FEATURES)}, not {settings.features}")
    for name in settings.features:
        if name not in FEATURES:
            raise unknown("features", name, FEATURES)
    for name in ("batch_size", "queries", "bank"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, not {getattr(settings, name)}")


def _measured(
    settings: protocols.Knn, encoder: frozen.FrozenEncoder, pair: labelled.Pair, say: Callable[[str], None]
) -> dict[str, Any]:
    """Top-1 by feature and k; JSON-ready."""
    say(_announced(settings, encoder, pair))
    get = functools.partial(extract, encoder, batch_size=settings.batch_size, workers=settings.data.workers)
    bank, queries = get(pair.train.source), get(pair.test.source)
    top1: dict[str, dict[str, float]] = {}
    for name in settings.features:
        found = knn.nearest(bank[name], queries[name], k=max(settings.k), rows=settings.queries, columns=settings.bank)
        ask = functools.partial(
            knn.vote, found, pair.train.labels, classes=pair.classes, temperature=settings.temperature
        )
        top1[name] = {str(k): float((ask(k=k) == pair.test.labels).mean()) for k in settings.k}
    images = {"train": len(pair.train.labels), "test": len(pair.test.labels)}
    return {"top1": top1, "images": images, "classes": pair.classes}


def _announced(settings: protocols.Knn, encoder: frozen.FrozenEncoder, pair: labelled.Pair) -> str:
    """Sizes and predicted memory, a line for each feature; one batch is encoded, for the widths."""
    how, count = encoder.preprocessing, len(pair.train.labels)
    blank = np.zeros((settings.batch_size, *encoder.view_shape), how.dtype)
    widths = {name: f.shape[1] for name, f in encoder.features(blank).items()}
    columns, lines = knn.even(count, settings.bank), []
    for name in settings.features:
        needed = knn.memory(
            width=widths[name], classes=pair.classes, k=max(settings.k), rows=settings.queries, columns=columns
        )
        lines.append(
            f"kNN on {name} features: {len(pair.test.labels):,} queries, a bank of {count:,} x {widths[name]:,} in "
            f"chunks of {columns:,}, predicted device memory {needed / 2**20:,.1f} MiB"
        )
    return "\n".join(lines)


def text(result: dict[str, Any]) -> str:
    """The numbers for a terminal."""
    settings, images = result["about"]["settings"], result["images"]
    lines = [f"{'kNN top-1':<12}" + "".join(f"{f'k={k}':>10}" for k in settings["k"])]
    for name, by_k in result["top1"].items():
        lines.append(f"{name:<12}" + "".join(f"{by_k[str(k)]:>10.2%}" for k in settings["k"]))
    data = settings["data"]
    lines.append(
        f"(T {settings['temperature']:g}, cosine; {images['train']:,} labelled images of {data['train_split']}, judged "
        f"on {images['test']:,} of {result['test']}; centre views; no k was chosen)"
    )
    return "\n".join(lines)
