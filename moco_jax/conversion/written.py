"""One function for each format: it writes a source's weights, and returns how far what it wrote agrees."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from moco_jax import parallel, pretrain
from moco_jax.assembly import assemble
from moco_jax.checkpoints import agreement, detectron2, folders, libraries, moco_state, pytorch, reading, recognise
from moco_jax.checkpoints.store import Store, leaves, write_json
from moco_jax.checkpoints.weights import Encoder, Pixels, Portable, Tensors
from moco_jax.config import Config, ConfigError, read_stored
from moco_jax.conversion.source import Run, Source
from moco_jax.core.schedules import learning_rate
from moco_jax.state import FORMAT

LIBRARIES = {"timm": "timm", "huggingface": "transformers"}


class Told(NamedTuple):
    """What a conversion found out about what it wrote."""

    agreement: str  # in words
    notes: tuple[str, ...] = ()


def pth_tar(source: Source, which: str, path: Path) -> Told:
    """The whole state as a checkpoint that the released code, or for the CIFAR stem its notebook, resumes from."""
    if source.run is None:
        raise ConfigError(
            f"--format=pth.tar takes a run's folder, and {source.name} is {source.layout}: make one of it first, by "
            "--format=orbax"
        )
    if which != "online":
        raise ConfigError("--format=pth.tar holds both encoders: leave --encoder out")
    run = source.run
    before, said = digests(run.tree), notes(run, path.name.removesuffix(".part"))
    pytorch.write(path, moco_state.to_content(run.tree, run.about, run.config, steps_per_epoch=run.steps_per_epoch))
    found = recognise.from_file(path)
    assert found.ours is not None
    back = moco_state.to_state(found, step=found.ours["step"], written=found.ours["written"])
    same = unchanged(before, digests(back))
    return Told(f"{same}; {features_of_tensors(source.online, source.pixels, found.online.backbone)}", said)


def notes(run: Run, file: str) -> tuple[str, ...]:
    """What the code that a checkpoint is laid out for makes of it."""
    said, (epoch, part) = [_resuming(run.config, file)], divmod(run.step, run.steps_per_epoch)
    if part:
        said.append(
            f"step {run.step} lies inside epoch {epoch}: the released code knows whole epochs and would begin that one "
            "anew; moco_jax continues at the step"
        )
    if (size := len(run.tree["memory"]["queue"])) % run.config.batch_size:
        said.append(f"the released code takes a queue that is a multiple of the batch, and {size} is none")
    return tuple(said)


def pth(goods: Portable, path: Path) -> Told:
    """A state_dict of the backbone, with its classifier as fc where there is one, under torchvision's names."""
    last = {} if goods.classifier is None else {"fc.weight": goods.classifier.weight, "fc.bias": goods.classifier.bias}
    pytorch.write(path, goods.backbone | last)
    found = recognise.from_file(path)
    return Told(features_of_tensors(_encoder(goods), goods.pixels, found.online.backbone))


def folder_of(write: Callable[[Portable, Path], None], goods: Portable, folder: Path) -> Told:
    """A folder that timm or transformers open; features are those of that library, or of torch where it is missing."""
    folder.mkdir()
    write(goods, folder)
    found, name = reading.read(folder), folders.library(folder)
    theirs = libraries.opened(folder)
    if theirs is None:
        return Told(
            features_of_tensors(_encoder(goods), goods.pixels, found.online.backbone),
            (f"{LIBRARIES[name]} is not installed, so it was not asked; PyTorch read what was written",),
        )
    return Told(agreement.of(_encoder(goods), goods.pixels, theirs, LIBRARIES[name]))


def detectron(goods: Portable, path: Path) -> Told:
    """A .pkl of the backbone for Detectron2's MODEL.WEIGHTS, and the lines that its config needs."""
    detectron2.write(goods, path)
    return Told("features not compared: Detectron2 is not run here", ("its config needs:\n" + detectron2.note(goods),))


def _encoder(goods: Portable) -> Encoder:
    return Encoder(goods.backbone, {}, goods.model, goods.channels)


def orbax(source: Source, folder: Path, config: Config | None) -> Told:
    """A run's folder, from which `train` continues: exactly where moco_jax wrote the file, else from its epoch on."""
    found = source.found
    if found is None:
        raise ConfigError(f"{source.name} is a run's folder already")
    if found.ours is not None:
        about, step, written, notes = _recorded(found, found.ours)
    else:
        about, step, notes = _described(source, found, config)
        written = None
    agreed = features_of_tensors(source.online, source.pixels, source.online.backbone)
    state = _placed(moco_state.to_state(found, step=step, written=written))
    source.release()  # a second copy is one more than the state needs
    before = digests(parallel.host(state))
    folder.mkdir()
    write_json(folder / "config.json", about)
    with Store(folder / "checkpoints") as store:
        store.save(step, state, about)
    del state
    with Store(folder / "checkpoints", read_only=True) as store:
        after: dict[str, str] = {}
        for field in store.fields(step):  # one at a time: together they are the state a second time
            after |= digests({field: store.field(step, field)})
    return Told(f"{unchanged(before, after)}; {agreed}", tuple(notes))


def _placed(state: Any) -> Any:
    """The state in JAX's arrays, as training saves it; ConfigError where JAX would narrow it."""
    placed = parallel.put_data(state)
    for name, leaf in leaves(placed).items():
        if leaf.dtype != leaves(state)[name].dtype:
            raise ConfigError(f"{name} is {leaves(state)[name].dtype}: set JAX_ENABLE_X64=1 to convert it")
    return placed


def _recorded(found: recognise.Found, ours: dict[str, Any]) -> tuple[dict[str, Any], int, np.ndarray, list[str]]:
    """Description, step and rows of the queue as moco_jax wrote them; ConfigError where the file contradicts them."""
    about, step = ours["about"], ours["step"]
    if about.get("format") != FORMAT:
        raise ConfigError(f"its state has format version {about.get('format')}; this version reads {FORMAT}")
    config = read_stored(about["config"])
    steps_per_epoch = about["total_steps"] // config.train.epochs
    if step // steps_per_epoch != (epoch := moco_state.training_of(found).epoch):
        raise ConfigError(
            f"it says epoch {epoch}, and moco_jax wrote step {step} beside it, of {steps_per_epoch} per "
            "epoch: one of them was changed"
        )
    check_fits(found, config)
    return about, step, ours["written"], []


def _described(source: Source, found: recognise.Found, config: Config | None) -> tuple[dict[str, Any], int, list[str]]:
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
    config, notes = parts.config, [f"warning: {w}" for w in parts.warnings]
    rate = learning_rate(
        config.optimizer,
        batch_size=config.batch_size,
        epochs=config.train.epochs,
        steps_per_epoch=parts.steps_per_epoch,
    )
    last, ours = training.settings.get("lr"), float(rate(jax.numpy.asarray(max(step - 1, 0))))
    if isinstance(last, float) and not np.isclose(last, ours, rtol=1e-4, atol=0):
        notes.append(f"its last learning rate was {last:g}, and the config's at that epoch is {ours:g}")
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
        raise ConfigError(f"the checkpoint was trained otherwise than the config says; it fits with {' '.join(wrong)}")
    for name, plain in (("nesterov", False), ("dampening", 0), ("maximize", False)):
        if training.settings.get(name, plain) != plain:
            raise ConfigError(f"its SGD has {name}={training.settings[name]}, which training here has not")


def features_of_tensors(encoder: Encoder, pixels: Pixels | None, tensors: Tensors) -> str:
    """How far torch's features by `tensors` are from ours by `encoder`, in words."""
    return agreement.of(encoder, pixels, functools.partial(pytorch.features, tensors, encoder.model), "PyTorch")


def digests(state: Any) -> dict[str, str]:
    """SHA-256 of every array of a state, with its type and shape, by name."""
    return {
        name: hashlib.sha256(f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes()).hexdigest()
        for name, leaf in leaves(state).items()
    }


def unchanged(before: dict[str, str], after: dict[str, str]) -> str:
    """In words, that a state read back is what was written; RuntimeError naming a leaf that is not."""
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise RuntimeError(f"{name} is not what it was before it was written")
    whole = hashlib.sha256(repr(sorted(before.items())).encode()).hexdigest()
    return f"read back, all {len(before)} arrays of the state are equal bit for bit (SHA-256 {whole[:16]})"


def _resuming(config: Config, file: str) -> str:
    """How the code that a checkpoint is laid out for goes on from it, or why no published code does."""
    assert config.moco is not None and config.queue is not None
    model, notebook = config.model, config.model.stem == "cifar"
    same = f"--lr {config.optimizer.learning_rate:g} --batch-size {config.batch_size} --epochs {config.train.epochs}"
    same += f" --moco-dim {model.dim} --moco-k {config.queue.size} --moco-m {config.moco.momentum:g}"
    same += f" --moco-t {config.moco.temperature:g}"
    if model.arch == "resnet_tiny" or model.width != 64 or (notebook and model.head != "linear"):
        return (
            f"the published code has no {model.arch} of width {model.width} with that stem and head: this file is for"
            " moco_jax, and for PyTorch code of yours"
        )
    if notebook:
        return f"the notebook resumes it: --arch {model.arch} {same} --resume {file}"
    flags = {"--mlp": model.head == "mlp", "--aug-plus": config.views.recipe == "moco_v2"}
    flags |= {"--cos": config.optimizer.schedule == "cosine"}
    said = " ".join([f"-a {model.arch}", same, *(flag for flag, used in flags.items() if used)])
    return f"the released code resumes it: main_moco.py {said} --resume {file}, and your flags of data and GPUs"
