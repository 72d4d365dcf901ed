"""The linear probe as a command: a linear classifier on a frozen encoder, by SGD, as main_lincls.py trains it."""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax import loop, parallel, protocols
from moco_jax.config import ConfigError, unknown
from moco_jax.evaluation import classifier, few, fitting, kept, labelled, loading, metrics
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation.features import FEATURES, extract


class Judged(NamedTuple):
    """Features that classifiers are judged on, from centre views."""

    features: np.ndarray  # (Q, D)
    labels: np.ndarray  # (Q,)


def run(
    settings: protocols.Linear,
    checkpoint: str | Path,
    workdir: str | Path,
    *,
    load: loading.Load | None = None,
) -> str:
    """The result as text; made once, then read back from `workdir`.

    `load` makes an encoder of the path (None: of a run's folder or a file of weights, `loading.load`). Raises
    ConfigError for what cannot be, for a folder of another evaluation, and where an encoder changed meanwhile
    (`kept.result`).
    """
    check(settings)
    how = settings.views
    loaded = (load or loading.load)(checkpoint).resized(size=how.size, resize=how.resize, filter=how.filter)
    loaded.check_feature(settings.feature, "feature")
    pair = labelled.open_pair(
        settings.data, loaded.config.data, seed=settings.seed, own_source=loaded.source, like=loaded.values
    )
    encoders = {"untrained encoder": loaded.untrained} if settings.untrained else {}
    encoders |= {"trained encoder": loaded.trained}
    about = kept.question(settings, loaded, loaded.trained.network, pair)

    def make() -> dict[str, Any]:
        rows = {
            name: _probed(settings, loaded, encoder, pair, about, Path(workdir) / name.split()[0], name)
            for name, encoder in encoders.items()
        }
        own = _own(settings, loaded, pair)
        return {"classes": pair.class_names, "test": pair.test_is, "rows": rows} | ({} if own is None else {"own": own})

    stored = kept.result(
        about, workdir, make, loaded.trained.network, loaded, checkpoint=checkpoint if load is None else None
    )
    return kept.said(text, stored, workdir, loaded.named(checkpoint))


def check(settings: protocols.Linear) -> None:
    """Raises ConfigError for a number of a linear probe that cannot be."""
    rates = settings.learning_rates
    if not rates or len({f"{r:g}" for r in rates}) < len(rates) or not all(r > 0 and math.isfinite(r) for r in rates):
        raise ConfigError(f"learning_rates must be one or more different numbers above 0, not {rates}")
    for name in ("batch_size", "epochs", "save_every_epochs"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, not {getattr(settings, name)}")
    for name, low, high in (
        ("momentum", 0, 1),
        ("weight_decay", 0, math.inf),
        ("milestone_factor", 0, math.inf),
        ("test_every_epochs", 0, math.inf),
        ("seed", 0, 2**32 - 1),
    ):
        if not low <= getattr(settings, name) <= high:
            raise ConfigError(f"{name} must lie in {low}..{high}, not {getattr(settings, name)}")
    if not 0 <= settings.holdout < 1:
        raise ConfigError(f"holdout must be a share from 0 to below 1, not {settings.holdout}")
    if settings.feature not in FEATURES:
        raise unknown("feature", settings.feature, FEATURES)
    fitting.schedule(settings, epochs=settings.epochs, steps_per_epoch=1, section="")


def _probed(
    settings: protocols.Linear,
    loaded: loading.Loaded,
    encoder: frozen.FrozenEncoder,
    pair: labelled.Pair,
    about: dict[str, Any],
    folder: Path,
    called: str,
) -> dict[str, Any]:
    """What one encoder gives: JSON-ready."""
    get = functools.partial(extract, batch_size=settings.batch_size, workers=settings.data.workers)
    fit, held = few.holdout(
        pair.train.labels, pair.train.groups, settings.holdout, seed=settings.seed, class_names=pair.class_names
    )
    judged = {"test": Judged(get(encoder, pair.test.source)[settings.feature], pair.test.labels)}
    data: dict[str, Any] = {"labels": pair.train.labels.astype(np.int32)}
    seen = None
    features: classifier.Inputs = classifier.stored_features
    if settings.views.recipe is None or len(held):
        train = get(encoder, pair.train.source)[settings.feature]  # (M, D)
        judged |= {"held": Judged(train[held], pair.train.labels[held])} if len(held) else {}
    if settings.views.recipe is None:
        data["features"] = train
    else:
        seen = fitting.images(
            loaded, settings.views, pair.train.source, seed=settings.seed, workers=settings.data.workers
        )
        data |= {**seen.data, "encoder": parallel.host(encoder.network)}
        features = classifier.frozen_features(loaded.encoder, seen.of, settings.feature)
    planned = fitting.plan(fit, batch_size=settings.batch_size, epochs=settings.epochs)
    task = classifier.linear(
        features,
        seed=settings.seed,
        width=judged["test"].features.shape[1],
        classes=pair.classes,
        rates=settings.learning_rates,
        schedule=fitting.schedule(settings, epochs=planned.epochs, steps_per_epoch=planned.steps_per_epoch, section=""),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    every = (settings.test_every_epochs or settings.epochs) * planned.steps_per_epoch
    state, history = fitting.in_folder(
        task,
        parallel.map_step(task.step),
        fitting.batches(seen, planned, seed=settings.seed, workers=settings.data.workers),
        parallel.put_data(data),
        planned,
        folder,
        about=about,
        called=called,
        save_every_epochs=settings.save_every_epochs,
        evaluations=[loop.Evaluation(every, functools.partial(_judge, judged, settings.learning_rates))],
    )
    return _result(settings, state, judged["test"], history, planned, pair)


def _own(settings: protocols.Linear, loaded: loading.Loaded, pair: labelled.Pair) -> dict[str, Any] | None:
    """What the classifier in a file of weights says of the test images as it is, or {"missing": why}; None: no such."""
    own = loaded.classifier
    if own is None:
        return None
    if len(own.weight) != pair.classes:
        return {"missing": f"it knows {len(own.weight)} classes, and the data have {pair.classes}"}
    places = np.arange(pair.classes)
    if own.names is not None and sorted(own.names) == sorted(pair.class_names):  # the same ones, in whatever order
        places = np.array([own.names.index(name) for name in pair.class_names])
    get = functools.partial(extract, batch_size=settings.batch_size, workers=settings.data.workers)
    features = get(loaded.trained, pair.test.source)["backbone"]
    params = {"kernel": jnp.asarray(own.weight[places].T, features.dtype), "bias": jnp.asarray(own.bias[places])}
    found = metrics.of(np.asarray(classifier.scores(params, features)), pair.test.labels, pair.classes)
    return {"last": found, "images": {"test": len(pair.test.labels)}}


def _judge(judged: dict[str, Judged], rates: tuple[float, ...], state: Any) -> dict[str, float]:
    """Top-1 of every classifier on every set: {"test_top1_lr30": share}."""
    params, out = parallel.host(state.online.params), {}
    for name, (features, labels) in judged.items():
        for rate, share in zip(rates, np.asarray(_top1(params, features, labels)).tolist(), strict=True):
            out[f"{name}_top1_lr{rate:g}"] = share
    return out


@jax.jit
def _top1(params: Any, features: jax.Array, labels: jax.Array) -> jax.Array:
    """(R,) shares; one classifier after the other, since R times all scores may not fit."""

    def one(params: Any) -> jax.Array:
        return jnp.mean(jnp.argmax(classifier.scores(params, features), axis=1) == labels)

    return jax.lax.map(one, params)


def _result(
    settings: protocols.Linear,
    state: Any,
    test: Judged,
    history: fitting.History,
    planned: fitting.Plan,
    pair: labelled.Pair,
) -> dict[str, Any]:
    """The headline from the last epoch, and what other choices would have said.

    A rate whose parameters are not finite has no number; ConfigError where it would be the headline.
    """
    rates, last = settings.learning_rates, history[planned.total]
    leaves = jax.tree.leaves(state.online.params)
    finite = [rate for i, rate in enumerate(rates) if all(np.isfinite(leaf[i]).all() for leaf in leaves)]
    if not finite or (not settings.holdout and rates[0] not in finite):
        raise ConfigError(
            f"learning rate {rates[0]:g} diverged, its parameters are not finite: put a lower one first in "
            "learning_rates, or have holdout choose one, and use another --workdir"
        )
    chosen = max(finite, key=lambda rate: last[_key("held", rate)]) if settings.holdout else rates[0]
    params = jax.tree.map(lambda a: a[rates.index(chosen)], state.online.params)
    found = metrics.of(np.asarray(classifier.scores(params, test.features)), test.labels, pair.classes)
    out = {
        "learning_rate": chosen,
        "chosen_by": "held-out train labels" if settings.holdout else "the first of learning_rates",
        "last": found,
        "best": _best(history, finite, "test", planned),
        "rates": {f"{rate:g}": last[_key("test", rate)] if rate in finite else None for rate in rates},
        "images": {"train": len(planned.rows), "test": len(test.labels)}
        | ({"held": len(pair.train.labels) - len(planned.rows)} if settings.holdout else {}),
    }
    return out | ({"held": _best(history, finite, "held", planned)} if settings.holdout else {})


def _best(history: fitting.History, rates: list[float], by: str, planned: fitting.Plan) -> Any:
    """The epoch and rate with the best accuracy `by` test or held-out labels, and the test accuracy there."""
    step, rate = max(
        ((step, rate) for step in sorted(history) for rate in rates), key=lambda at: history[at[0]][_key(by, at[1])]
    )
    epoch = step // planned.steps_per_epoch
    return {"epoch": epoch, "learning_rate": rate, "top1": history[step][_key("test", rate)]}


def _key(name: str, rate: float) -> str:
    return f"{name}_top1_lr{rate:g}"


def text(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    settings, lines = result["about"]["settings"], []
    for name, row in result["rows"].items():
        best, images = row["best"], row["images"]
        held_out = f" of {images['train'] + images['held']:,}, {images['held']:,} held out" if "held" in images else ""
        lines += [
            f"{name}: top-1 {row['last']['top1']:.2%} after the last epoch (learning rate {row['learning_rate']:g}, "
            f"{row['chosen_by']}; {images['train']:,} train labels{held_out}, {images['test']:,} test images)",
            metrics.summary(row["last"], result["classes"]),
            f"  best of all epochs and rates, chosen on the test split: {best['top1']:.2%} (epoch {best['epoch']}, "
            f"learning rate {best['learning_rate']:g})",
        ]
        if "held" in row:
            held = row["held"]
            lines.append(
                f"  epoch and rate chosen on held-out train labels: {held['top1']:.2%} (epoch {held['epoch']}, "
                f"learning rate {held['learning_rate']:g})"
            )
        if len(row["rates"]) > 1:
            listed = "  ".join(f"{rate}: {_share(share)}" for rate, share in row["rates"].items())
            lines.append(f"  top-1 by learning rate, last epoch: {listed}")
    if own := result.get("own"):
        if "missing" in own:
            lines.append(f"its own classifier is not judged: {own['missing']}")
        else:
            lines += [
                f"its own classifier: top-1 {own['last']['top1']:.2%} as it is ({own['images']['test']:,} test images)",
                metrics.summary(own["last"], result["classes"]),
            ]
    views = settings["views"]["recipe"] or "centre views, encoded once"
    lines.append(
        f"(one run, seed {settings['seed']}; {settings['feature']} features; views: {views}; judged on "
        f"{result['test']}, centre views)"
    )
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.2%}"
