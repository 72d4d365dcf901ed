"""Where training goes on: which run a checkpoint of another program is of, and how that program goes on from ours."""

from typing import Any

import jax
import numpy as np

from moco_jax import pretrain
from moco_jax.assembly import assemble
from moco_jax.checkpoints import moco_state, recognise
from moco_jax.checkpoints.training import Ours
from moco_jax.config import Config, ConfigError
from moco_jax.conversion.source import Run, Source
from moco_jax.core.schedules import learning_rate
from moco_jax.state import FORMAT


def recorded(found: recognise.Found, ours: Ours) -> tuple[dict[str, Any], int, np.ndarray, list[str]]:
    """Description, step and rows of the queue as moco_jax wrote them; ConfigError where the file contradicts them."""
    about, step, config = ours.about, ours.step, ours.config
    if about.get("format") != FORMAT:
        raise ConfigError(f"its state has format version {about.get('format')}; this version reads {FORMAT}")
    steps_per_epoch = about["total_steps"] // config.train.epochs
    if step // steps_per_epoch != (epoch := moco_state.training_of(found).epoch):
        raise ConfigError(
            f"it says epoch {epoch}, and moco_jax wrote step {step} beside it, of {steps_per_epoch} per "
            "epoch: one of them was changed"
        )
    check_fits(found, config)
    return about, step, ours.written, []


def described(source: Source, found: recognise.Found, config: Config | None) -> tuple[dict[str, Any], int, list[str]]:
    """Description and step of another program's checkpoint, which knows its epoch alone, for the run of a config."""
    training = moco_state.training_of(found)
    if config is None:
        released = {"mlp": "moco_v2_r50", "linear": "moco_v1_r50"}[source.online.model.head]
        page = "cifar10_demo" if source.online.model.stem == "cifar" else released
        raise ConfigError(
            f"{source.name} knows its epoch, and neither its images nor its settings: name the run that continues it, "
            f"such as --config={page} --config.data.data_dir=DIR"
        )
    if config.train.init_from is not None:
        raise ConfigError("--config.train.init_from starts a run anew, and this one goes on: leave it out")
    check_fits(found, config)
    parts = assemble(config)
    check_fits(found, parts.config)
    step, total = training.epoch * parts.steps_per_epoch, parts.config.train.epochs * parts.steps_per_epoch
    if step > total:
        raise ConfigError(
            f"{source.name} has done {training.epoch} epochs, and the config trains {parts.config.train.epochs}: "
            "raise --config.train.epochs"
        )
    config = parts.config
    notes = [f"epoch {training.epoch} is step {step} of {total}"]
    pretrain.default_evaluators(parts)  # what train would refuse, such as kNN without labels, is refused here
    assert config.moco is not None
    notes.append(
        "momentum and temperature are in no such file: training goes on with the config's "
        f"moco.momentum={config.moco.momentum:g} and moco.temperature={config.moco.temperature:g}"
    )
    rate = learning_rate(
        config.optimizer,
        batch_size=config.batch_size,
        epochs=config.train.epochs,
        steps_per_epoch=parts.steps_per_epoch,
    )
    last, ours = training.settings.get("lr"), float(rate(jax.numpy.asarray(max(step - 1, 0))))
    if isinstance(last, float) and not np.isclose(last, ours, rtol=1e-4, atol=0):
        notes.append(
            f"warning: its last learning rate was {last:g}, and the config's there is {ours:g} "
            "(optimizer.learning_rate, optimizer.schedule, optimizer.linear_scaling, train.epochs)"
        )
    if step == total:
        notes.append(f"all {total} steps of this config are done: nothing is left to train")
    return pretrain.about_of(parts), step, notes


def check_fits(found: recognise.Found, config: Config) -> None:
    """ConfigError naming all flags by which a config differs from what a checkpoint was trained with."""
    training, model = moco_state.training_of(found), found.online.model
    if config.queue is None:
        raise ConfigError(f"the checkpoint is MoCo's, and the config is of mechanism {config.mechanism!r}")
    have: dict[str, tuple[Any, Any]] = {
        f"model.{name}": (getattr(model, name), getattr(config.model, name))
        for name in ("arch", "stem", "width", "head", "dim")
    }
    if config.queue.size is not None:
        have["queue.size"] = (len(training.queue), config.queue.size)
    for theirs, key in (("momentum", "momentum"), ("weight_decay", "weight_decay")):
        have[f"optimizer.{key}"] = (training.settings.get(theirs, 0.0), getattr(config.optimizer, key))
    wrong = [f"--config.{key}={theirs}" for key, (theirs, ours) in have.items() if theirs != ours]
    if wrong:
        wrong += [] if config.queue.size is not None else [f"--config.queue.size={len(training.queue)}"]
        raise ConfigError(f"the checkpoint was trained otherwise than the config says; it fits with {' '.join(wrong)}")
    for name, plain in (("nesterov", False), ("dampening", 0), ("maximize", False)):
        if training.settings.get(name, plain) != plain:
            raise ConfigError(f"its SGD has {name}={training.settings[name]}, which training here has not")


def notes(run: Run, file: str) -> tuple[str, ...]:
    """What the code that a checkpoint is laid out for makes of it."""
    said, (epoch, part) = [_resuming(run.config, file)], divmod(run.step, run.steps_per_epoch)
    if _published(run.config) and (other := _otherwise(run.config)):
        said.append(f"that code trains otherwise than this run from there on: it has no {', no '.join(other)}")
    if part:
        said.append(
            f"step {run.step} lies inside epoch {epoch}: the released code knows whole epochs and would begin that one "
            "anew; moco_jax continues at the step"
        )
    if (size := len(run.tree["memory"]["queue"])) % run.config.batch_size:
        said.append(f"the released code takes a queue that is a multiple of the batch, and {size} is none")
    return tuple(said)


def _published(config: Config) -> bool:
    """Whether published code has the encoder: the notebook with v1's head, the released code with either."""
    model = config.model
    return model.arch != "resnet_tiny" and model.width == 64 and (model.stem != "cifar" or model.head == "linear")


def _resuming(config: Config, file: str) -> str:
    """How the code that a checkpoint is laid out for goes on from it, or why no published code does."""
    model = config.model
    if not _published(config):
        return (
            f"the published code has no {model.arch} of width {model.width} with that stem and head: this file is for"
            " moco_jax, and for PyTorch code of yours"
        )
    if model.stem == "cifar":
        return f"the notebook resumes it: {_flags(config)} --resume {file}"
    return (
        f"the released code resumes it: main_moco.py {_flags(config)} --resume {file}, and your flags of data and GPUs"
    )


def _flags(config: Config) -> str:
    """A run's settings as arguments of main_moco.py, or for the stem of CIFAR of its notebook."""
    moco, queue, model, optimizer = config.moco, config.queue, config.model, config.optimizer
    assert moco is not None and queue is not None
    notebook, batch = model.stem == "cifar", config.batch_size
    rate = optimizer.learning_rate * (batch / 256 if optimizer.linear_scaling else 1.0)  # that code knows no scaling
    flags = ["--cos"]
    if optimizer.schedule == "step":  # the notebook counts epochs from 1, ours and main_moco.py's begin at 0
        flags = ["--schedule", *(str(epoch + notebook) for epoch in optimizer.milestones)]
    flags += [f"--batch-size {batch} --wd {optimizer.weight_decay:.10g} --moco-dim {model.dim} --moco-k {queue.size}"]
    flags += [f"--moco-m {moco.momentum:.10g} --moco-t {moco.temperature:.10g}"]
    if notebook:
        flags += [f"--bn-splits {batch // (config.bn.group_size or batch)}", *["--symmetric"] * moco.symmetric]
    else:
        flags += ["--mlp"] * (model.head == "mlp") + ["--aug-plus"] * (config.views.recipe == "moco_v2")
    return " ".join([f"--arch {model.arch} --lr {rate:.10g} --epochs {config.train.epochs}", *flags])


def _otherwise(config: Config) -> list[str]:
    """What of a run the code that a checkpoint is laid out for has no flag for, with what it does instead."""
    assert config.moco is not None and config.queue is not None
    notebook, recipe = config.model.stem == "cifar", config.views.recipe
    size, recipes = (32, ("cifar_demo",)) if notebook else (224, ("moco_v2", "moco_v1"))
    lacks = {
        f"views.recipe={recipe} (it augments as {recipes[-1]})": recipe not in recipes,
        f"views.size={config.views.size} (its views have {size} pixels)": config.views.size != size,
        "moco.symmetric": config.moco.symmetric and not notebook,
        "queue.mask_same_image": config.queue.mask_same_image,
        f"data.pairs={config.data.pairs}": config.data.pairs != "same_image",
        "--cos that counts epochs from 0 (its first one is 1)": notebook and config.optimizer.schedule == "cosine",
    }
    return [what for what, lacking in lacks.items() if lacking]
