"""A whole network fitted to labels, from an encoder or from random weights: prepared once, for any draw of labels."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from moco_jax import parallel, protocols
from moco_jax.config import ConfigError, unknown
from moco_jax.data import loader
from moco_jax.evaluation import classifier, fitting, labelled, loading
from moco_jax.evaluation import encoder as frozen
from moco_jax.models.encoder import Encoder
from moco_jax.state import Network

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


def check_encoder(fit: protocols.Fit, loaded: loading.Loaded, *, scratch: bool) -> None:
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
    fit: protocols.Fit, how: protocols.Views, loaded: loading.Loaded, pair: labelled.Pair, *, seed: int, workers: int
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
    views = loader.centered(fitter.pair.test.source, how.view, batch_size=256, workers=fitter.images.workers)
    for rows, real in views:
        out.append(np.asarray(fitter.scores(local, parallel.put_rows(rows)))[:real])
    return np.concatenate(out)


def fitted(
    fitter: Fitter,
    network: Network,
    rows: np.ndarray,
    *,
    seed: int,
    draw: int,
    scratch: bool,
    hear: Callable[[str], None] | None = None,
) -> np.ndarray:
    """Test scores (Q, classes) of a network trained on the labels of `rows`, in memory: for tables of many."""
    planned, own = plan(fitter, rows), fitting.seed_of(seed, draw)
    task, step = task_of(fitter, network, planned, seed=seed, scratch=scratch)
    ahead = fitting.batches(fitter.images, planned, seed=int(own), workers=fitter.images.workers)
    state = fitting.in_memory(step, task.init, ahead(0), data_of(fitter, own), planned, own, hear=hear)
    return judged(fitter, state.online)


def data_of(fitter: Fitter, own: np.ndarray) -> Any:
    """What the steps of a draw read: images, labels and the draw's own seed, on the devices."""
    return fitter.data | parallel.put_data({"seed": own})


def _backbone(tree: Any) -> Any:
    return {k: v for k, v in tree.items() if k == "backbone"}
