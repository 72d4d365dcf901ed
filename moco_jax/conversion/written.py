"""One function for each format: it writes a source's weights, and tells how far what it wrote agrees."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moco_jax import parallel
from moco_jax.checkpoints import (
    agreement,
    detectron2,
    folders,
    libraries,
    moco_state,
    origin,
    pytorch,
    reading,
    recognise,
    torch_names,
)
from moco_jax.checkpoints.store import Store, write_json
from moco_jax.checkpoints.verified import leaves
from moco_jax.checkpoints.weights import Encoder, Pixels, Portable, Tensors
from moco_jax.config import Config, ConfigError
from moco_jax.conversion import resuming
from moco_jax.conversion.source import Source

FIELDS = {"online": "online", "target": "target", "momentum": "optimizer", "queue": "memory"}  # of a stored state
LIBRARIES = {"timm": "timm", "huggingface": "transformers"}


class Told(NamedTuple):
    """What a conversion found out about what it wrote."""

    agreement: str  # in words
    notes: tuple[str, ...] = ()


def check_whole(source: Source, form: str, config: Config | None) -> None:
    """ConfigError where a format of a whole state cannot be made of a source, before anything else is done."""
    run, found = source.run, source.found
    if form == "pth.tar" and run is not None:
        moco_state.check(run.config)
    elif form == "pth.tar":
        whole = found is not None and found.training is not None
        way = "make one of it by --format=orbax" if whole else "start a run from it by --config.train.init_from"
        raise ConfigError(f"--format=pth.tar takes a run's folder, and {source.name} is {source.layout}: {way}")
    elif found is None:
        raise ConfigError(f"{source.name} is a run's folder already")
    elif found.ours is not None and config is not None:
        raise ConfigError(f"{source.name} is of a run of moco_jax, whose config it holds: leave --config out")


def pth_tar(source: Source, path: Path) -> Told:
    """The whole state as a checkpoint that the released code, or for the CIFAR stem its notebook, resumes from."""
    run = source.run
    assert run is not None
    before, said = digests(_as_stored(run.tree)), resuming.notes(run, path.name)
    content = moco_state.to_content(run.tree, run.about, run.config, steps_per_epoch=run.steps_per_epoch)
    source.release()  # `content` alone holds the state now
    _lay_out([content["state_dict"], *content["optimizer"]["state"].values()])
    pytorch.write(path, content)
    del content  # the file, read back, is the state a second time
    found = recognise.from_file(path)
    assert found.ours is not None
    if found.ours.step != run.step:
        raise RuntimeError(f"step {run.step} was written, and {found.ours.step} read back")
    same, online = unchanged(before, digests(_as_there(found, found.ours.written))), found.online
    del found  # comparing needs room
    return Told(f"{same}; {features_of_tensors(online, source.pixels, online.backbone)}", said)


def _lay_out(parts: list[Tensors]) -> None:
    """Copy views into torch's order of values one by one, so that the state is not there twice while it is written."""
    for tensors in parts:
        for name in tensors:
            tensors[name] = np.array(tensors[name], order="C")


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
    if isinstance(theirs, str) and not pytorch.installed():
        return Told(f"features not compared: {theirs}, and PyTorch is not installed")
    if isinstance(theirs, str):
        return Told(
            features_of_tensors(_encoder(goods), goods.pixels, found.online.backbone),
            (f"{theirs}, so {LIBRARIES[name]} was not asked; PyTorch read what was written",),
        )
    return Told(agreement.of(_encoder(goods), goods.pixels, theirs, LIBRARIES[name]))


def detectron(goods: Portable, path: Path) -> Told:
    """A .pkl of the backbone for Detectron2's MODEL.WEIGHTS, and the lines that its config needs."""
    detectron2.write(goods, path)
    return Told(
        "features not compared: Detectron2 is not run here",
        ("its config needs:\n" + detectron2.note(goods, path.name),),
    )


def _encoder(goods: Portable) -> Encoder:
    return Encoder(goods.backbone, {}, goods.model, goods.channels)


def orbax(source: Source, folder: Path, config: Config | None) -> Told:
    """A run's folder, from which `train` continues: exactly where moco_jax wrote the file, else from its epoch on."""
    found = source.found
    assert found is not None
    if found.ours is not None:
        about, step, written, notes = resuming.recorded(found, found.ours)
    else:
        about, step, notes = resuming.described(source, found, config)
        about["origin"] = origin.of_file(found)._asdict()
        written = None
    before = digests(_as_there(found, written))
    state = _placed(moco_state.to_state(found, step=step, written=written))
    source.release()  # a second copy is one more than the state needs
    folder.mkdir()
    write_json(folder / "config.json", about)
    with Store(folder / "checkpoints") as store:
        store.save(step, state, about)
    del state
    after: dict[str, str] = {}
    with Store(folder / "checkpoints", read_only=True) as store:
        for name, field in FIELDS.items():
            after |= digests({name: _as_here(store.field(step, field), field)})  # one at a time, not the state again
        online = _as_here(store.field(step, "online"), "online")
    same, backbone = unchanged(before, after), {n: t for n, t in online.items() if not n.startswith("fc.")}
    agreed = features_of_tensors(source.online._replace(backbone=backbone), source.pixels, backbone)
    return Told(f"{same}; {agreed}", tuple(notes))


def _as_there(found: recognise.Found, written: np.ndarray | None) -> dict[str, Any]:
    """A file's tensors by its names, to be compared with what was made of them."""
    training, target = moco_state.training_of(found), found.target
    assert target is not None
    return {
        "online": found.online.backbone | found.online.head,
        "target": target.backbone | target.head,
        "momentum": training.momentum,
        "queue": {
            "queue": training.queue,
            "ptr": np.asarray(training.ptr, np.int32),
            "written": np.full(len(training.queue), -1, np.int32) if written is None else written,
        },
    }


def _as_stored(tree: dict[str, Any]) -> dict[str, Any]:
    """All fields of a stored state, as `_as_there` names them."""
    return {name: _as_here(tree[field], field) for name, field in FIELDS.items()}


def _as_here(field: Any, name: str) -> dict[str, Any]:
    """A field of a stored state in a file's names and layouts."""
    if name == "memory":
        return dict(field)
    return torch_names.to_torch({"params": moco_state.trace({name: field})} if name == "optimizer" else field)


def _placed(state: Any) -> Any:
    """The state in JAX's arrays, as training saves it; ConfigError where JAX would narrow it."""
    placed = parallel.put_data(state)
    for name, leaf in leaves(placed).items():
        if leaf.dtype != leaves(state)[name].dtype:
            raise ConfigError(f"{name} is {leaves(state)[name].dtype}: set JAX_ENABLE_X64=1 to convert it")
    return placed


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
    return f"read back, all {len(before)} arrays are equal bit for bit (SHA-256 {whole[:16]})"
