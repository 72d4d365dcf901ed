"""The whole network trained on labels, from an encoder or from random weights: one draw of labels or several."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from moco_jax import loop, parallel, protocols
from moco_jax.config import ConfigError, unknown
from moco_jax.data import loader, sources
from moco_jax.evaluation import classifier, few, fitting, intervals, kept, labelled, metrics
from moco_jax.evaluation import encoder as frozen
from moco_jax.models.encoder import Encoder
from moco_jax.state import Network

STARTS = ("encoder", "scratch")
BATCH_NORMS = ("train", "frozen")


class Fitter(NamedTuple):
    """What is common to all draws: compiled once per batch size."""

    fit: protocols.Fit
    encoder: Encoder
    group_size: int
    images: fitting.Images
    preprocessing: frozen.Preprocessing
    pair: labelled.Pair
    tasks: dict[Any, tuple[classifier.Task, parallel.Step]]
    data: Any  # on the devices
    scores: Callable[[Any, jax.Array], jax.Array]


def run(
    settings: protocols.Finetune,
    checkpoint: str | Path,
    workdir: str | Path,
    *,
    load: frozen.Load | None = None,
) -> str:
    """The result as text; made once, then read back from `workdir`.

    `load` makes an encoder of the path (None: of a run's folder, `encoder.load`). Raises ConfigError for what cannot
    be, before anything is trained, and for a folder of another evaluation; RuntimeError where an encoder changed
    meanwhile (`kept.result`).
    """
    check(settings)
    loaded = (load or frozen.load)(checkpoint).resized(size=settings.views.size, resize=settings.views.resize)
    check_encoder(settings.fit, loaded, scratch=settings.start == "scratch")
    pair = labelled.open_pair(
        settings.data, loaded.config.data, seed=settings.seed, own_source=loaded.source, like=loaded.values
    )
    network = loaded.trained.network if settings.start == "encoder" else loaded.untrained.network
    names = sources.names_of(pair.train.source)
    drawn = [
        few.rows(pair.train.labels, settings.labels, seed=settings.seed, draw=draw, names=names)
        for draw in range(settings.draws)
    ]
    about = kept.question(settings, loaded, network, pair, drawn)

    def make() -> dict[str, Any]:
        fitter = prepare(settings.fit, settings.views, loaded, pair, seed=settings.seed, workers=settings.data.workers)
        found = [
            _drawn(settings, fitter, network, rows, draw, Path(workdir) / f"draw_{draw}", about)
            for draw, rows in enumerate(drawn)
        ]
        groups = pair.test.groups
        units = len(pair.test.labels) if groups is None else len(np.unique(groups))
        over = f"{units:,} {'' if groups is None else 'groups of '}test images"
        return {"classes": pair.class_names, "test": pair.test_is, "units": units, "over": over, "draws": found}

    stored = kept.result(about, workdir, make, network, loaded, checkpoint=checkpoint if load is None else None)
    where = f"{loaded.trained.label}, {_origin(settings, loaded, checkpoint)}"
    return f"{text(stored)}\n{kept.origin(stored, workdir, where)}"


def check(settings: protocols.Finetune) -> None:
    """Raises ConfigError for a number of a fine-tuning that cannot be."""
    check_fit(settings.fit)
    if settings.start not in STARTS:
        raise unknown("start", settings.start, STARTS)
    for name in ("draws", "save_every_epochs"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, not {getattr(settings, name)}")
    if settings.test_every_epochs < 0 or not 0 <= settings.seed < 2**32:
        raise ConfigError("test_every_epochs must be 0 or more, and seed from 0 to 2**32 - 1")
    if settings.draws > 1 and (settings.labels == "all" or few.is_list(settings.labels)):
        raise ConfigError(
            f"draws={settings.draws} of labels={settings.labels!r}: nothing is drawn there, so all would be alike; use "
            "draws=1, or a number of labels per class"
        )


def check_fit(fit: protocols.Fit) -> None:
    """Raises ConfigError for a number of section `fit` that cannot be."""
    for name in ("batch_size", "epochs"):
        if getattr(fit, name) < 1:
            raise ConfigError(f"fit.{name} must be 1 or more, not {getattr(fit, name)}")
    for name in ("learning_rate", "head_learning_rate", "scratch_learning_rate", "weight_decay", "milestone_factor"):
        if not 0 <= getattr(fit, name) < math.inf:
            raise ConfigError(f"fit.{name} must be 0 or more, not {getattr(fit, name)}")
    for name in ("momentum", "layer_decay"):
        if not 0 <= getattr(fit, name) <= 1:
            raise ConfigError(f"fit.{name} must lie in 0..1, not {getattr(fit, name)}")
    if fit.batch_norm not in BATCH_NORMS:
        raise unknown("fit.batch_norm", fit.batch_norm, BATCH_NORMS)
    if fit.group_size is not None and fit.group_size < 0:
        raise ConfigError(f"fit.group_size must be 0 or more, not {fit.group_size}")
    if fit.least_steps < 0 or (fit.least_steps and fit.schedule != "cosine"):
        raise ConfigError(
            f"fit.least_steps {fit.least_steps} with fit.schedule={fit.schedule!r}: it must be 0 or more, and "
            "goes with 'cosine', which ends wherever training ends"
        )
    fitting.schedule(fit, epochs=fit.epochs, steps_per_epoch=1, section="fit.")


def check_encoder(fit: protocols.Fit, loaded: frozen.Loaded, *, scratch: bool) -> None:
    """Raises ConfigError for what a section `fit` asks and an encoder cannot."""
    encoder = loaded.grouped(fit.group_size)
    if encoder.module is None:
        raise ConfigError(
            f"encoder {encoder.label!r} has no linen module, which training it needs; build it by build()"
        )
    if scratch and fit.batch_norm == "frozen":
        raise ConfigError(
            "fit.batch_norm='frozen' from scratch: running statistics of random weights say nothing; use 'train'"
        )
    if fit.layer_decay != 1 and not any(classifier.stage(name) for name in loaded.trained.network.params["backbone"]):
        raise ConfigError(
            f"fit.layer_decay {fit.layer_decay} needs a backbone with stages named layer1_0, layer2_0, ...; encoder "
            f"{encoder.label!r} has none: use 1"
        )


def prepare(
    fit: protocols.Fit, how: protocols.Views, loaded: frozen.Loaded, pair: labelled.Pair, *, seed: int, workers: int
) -> Fitter:
    """What all draws share: images in place, and the function that judges test images."""
    encoder = loaded.grouped(fit.group_size)
    seen = fitting.images(loaded, how, pair.train.source, seed=seed, workers=workers)
    preprocessing = loaded.trained.preprocessing
    group = loaded.config.bn.group_size if fit.group_size is None else fit.group_size
    data = parallel.put_data({**seen.data, "labels": pair.train.labels.astype(np.int32)})

    module: Any = encoder.module  # check_encoder refuses an encoder without one

    @jax.jit
    def scores(network: Network, raw: jax.Array) -> jax.Array:
        variables = {"params": {"backbone": network.params["backbone"]}, "batch_stats": network.batch_stats}
        features = module.apply(variables, preprocessing.standardise(raw), train=False)
        return classifier.scores(network.params["classifier"], features)

    return Fitter(fit, encoder, group, seen, preprocessing, pair, {}, data, scores)


def task_of(
    fitter: Fitter, network: Network, planned: fitting.Plan, *, seed: int, scratch: bool
) -> tuple[classifier.Task, parallel.Step]:
    """The task of a plan and its mapped step: one per length of plan and start, however many draws."""
    fit = fitter.fit
    name = (planned.batch_size, planned.steps_per_epoch, frozen.digest(network), scratch)
    if name not in fitter.tasks:
        size = fitter.preprocessing
        shape = jax.ShapeDtypeStruct((1, size.size, size.size, size.channels), np.dtype(size.computed))
        variables = {"params": {"backbone": network.params["backbone"]}, "batch_stats": _backbone(network.batch_stats)}
        module: Any = fitter.encoder.module
        width = jax.eval_shape(module.apply, variables, shape).shape[1]
        params = {"backbone": network.params["backbone"], "classifier": {"kernel": 0.0, "bias": 0.0}}
        body, head = (fit.scratch_learning_rate,) * 2 if scratch else (fit.learning_rate, fit.head_learning_rate)
        decay = 1.0 if scratch else fit.layer_decay
        task = classifier.whole(
            fitter.encoder,
            parallel.host(network),
            fitter.images.of,
            seed=seed,
            width=width,
            classes=fitter.pair.classes,
            rates=classifier.stage_rates(params, body=body, head=head, decay=decay),
            schedule=fitting.schedule(
                fit, epochs=planned.epochs, steps_per_epoch=planned.steps_per_epoch, section="fit."
            ),
            momentum=fit.momentum,
            weight_decay=fit.weight_decay,
            frozen_statistics=fit.batch_norm == "frozen",
        )
        fitter.tasks[name] = task, parallel.map_step(task.step)
    return fitter.tasks[name]


def plan(fitter: Fitter, rows: np.ndarray) -> fitting.Plan:
    """The plan of a draw; frozen statistics need no groups."""
    group = 1 if fitter.fit.batch_norm == "frozen" else fitter.group_size
    fit = fitter.fit
    return fitting.plan(
        rows, batch_size=fit.batch_size, epochs=fit.epochs, least_steps=fit.least_steps, group_size=group
    )


def judged(fitter: Fitter, network: Network) -> np.ndarray:
    """Scores (Q, classes) of every test image, from centre views."""
    how, out = fitter.preprocessing, []
    local = parallel.local(parallel.put_data(network))  # processes judge apart
    views = loader.centered(
        fitter.pair.test.source, size=how.size, resize=how.resize, batch_size=256, workers=fitter.images.workers
    )
    for rows, real in views:
        out.append(np.asarray(fitter.scores(local, parallel.put_rows(rows)))[:real])
    return np.concatenate(out)


def fitted(fitter: Fitter, network: Network, rows: np.ndarray, *, seed: int, draw: int, scratch: bool) -> np.ndarray:
    """Test scores (Q, classes) of a network trained on the labels of `rows`, in memory: for tables of many."""
    planned, own = plan(fitter, rows), fitting.seed_of(seed, draw)
    task, step = task_of(fitter, network, planned, seed=seed, scratch=scratch)
    ahead = fitting.batches(fitter.images, planned, seed=int(own), workers=fitter.images.workers)
    state = fitting.in_memory(step, task.init, ahead(0), _data(fitter, own), planned, own)
    return judged(fitter, state.online)


def _data(fitter: Fitter, own: np.ndarray) -> Any:
    return fitter.data | parallel.put_data({"seed": own})


def _drawn(
    settings: protocols.Finetune,
    fitter: Fitter,
    network: Network,
    rows: np.ndarray,
    draw: int,
    folder: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    """What one draw of labels gives: JSON-ready."""
    planned, own = plan(fitter, rows), fitting.seed_of(settings.seed, draw)
    scratch = settings.start == "scratch"
    task, step = task_of(fitter, network, planned, seed=settings.seed, scratch=scratch)
    labels = fitter.pair.test.labels

    def evaluate(state: Any) -> dict[str, float | str]:
        found = judged(fitter, parallel.host(state.online))
        return {"test_top1": float(np.mean(found.argmax(1) == labels))}

    every = settings.test_every_epochs * planned.steps_per_epoch
    state, history = fitting.in_folder(
        task,
        step,
        fitting.batches(fitter.images, planned, seed=int(own), workers=fitter.images.workers),
        _data(fitter, own),
        planned,
        folder,
        about=about,
        save_every_epochs=settings.save_every_epochs,
        evaluations=[loop.Evaluation(every, evaluate)],
        start=(own,),
    )
    out = {"last": metrics.of(judged(fitter, state.online), labels, fitter.pair.classes), "train": len(rows)}
    if history:
        best = max(history, key=lambda at: history[at]["test_top1"])
        out["best"] = {"epoch": best // planned.steps_per_epoch, "top1": history[best]["test_top1"]}
    return out


def _backbone(tree: Any) -> Any:
    return {k: v for k, v in tree.items() if k == "backbone"}


def _origin(settings: protocols.Finetune, loaded: frozen.Loaded, checkpoint: str | Path) -> str:
    if settings.start == "scratch":
        return f"from scratch, the network of {checkpoint}"
    return f"from step {loaded.step} of {loaded.total_steps} of {checkpoint}"


def text(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    settings, found = result["about"]["settings"], result["draws"]
    how = "supervised from scratch" if settings["start"] == "scratch" else "fine-tuned"
    over = intervals.over_draws([d["last"]["top1"] for d in found], result["units"])
    what = result["over"] + (f" and {len(found)} draws" if len(found) > 1 else "")
    half = "" if over.half_width is None else f" ± {100 * over.half_width:.2f} (95 % interval over {what})"
    asked = f"{settings['labels']} labels{' per class' if settings['labels'].isdigit() else ''}"
    lines = [f"{how} on {asked} ({found[0]['train']:,} images): top-1 {over.mean:.2%}{half}, last epoch"]
    if len(found) == 1:
        lines.append(metrics.summary(found[0]["last"], result["classes"]))
    if "best" in found[0]:
        best = float(np.mean([d["best"]["top1"] for d in found]))
        lines.append(f"  best epoch, chosen on the test split: {best:.2%}")
    views = settings["views"]["recipe"] or "centre views"
    lines.append(
        f"({len(found)} draw{'s' if len(found) > 1 else ''}, seed {settings['seed']}; views: {views}; judged on "
        f"{result['test']}, centre views)"
    )
    return "\n".join(lines)
