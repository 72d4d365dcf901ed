"""What is converted: a run's folder or another program's weights, in the same terms."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from moco_jax.checkpoints import moco_state, origin, reading, recognise, torch_names, weights
from moco_jax.checkpoints.store import Store
from moco_jax.checkpoints.weights import Classifier, Encoder, Pixels, Portable
from moco_jax.config import Config, ConfigError, read_stored
from moco_jax.evaluation.loading import checkpoints_of, none_yet


class Run(NamedTuple):
    """A checkpoint of our own, whole."""

    step: int
    total_steps: int
    tree: dict[str, Any]  # the state, as `Store.tree` gives it
    about: dict[str, Any]
    config: Config

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.total_steps // self.config.train.epochs

    @property
    def momentum(self) -> weights.Tensors:
        """The optimizer's buffers, by the names of the online encoder's parameters."""
        return torch_names.to_torch({"params": moco_state.trace(self.tree)})


class Source(NamedTuple):
    """What is converted."""

    name: str
    layout: str  # in words
    online: Encoder
    target: Encoder | None
    classifier: Classifier | None
    pixels: Pixels | None
    run: Run | None  # of our own
    found: recognise.Found | None  # of another program

    def encoder(self, which: str) -> Encoder:
        """The online or the target encoder; ConfigError where there is no target."""
        if which == "online":
            return self.online
        if self.target is None:
            raise ConfigError(f"{self.name} holds no target encoder: it is {self.layout}")
        return self.target

    def release(self) -> None:
        """Let go of all tensors, once they are copied or written: nothing is to be read of them afterwards."""
        for encoder in filter(None, (self.online, self.target)):
            encoder.backbone.clear()
            encoder.head.clear()
        if self.found is not None and self.found.training is not None:
            self.found.training.momentum.clear()
        if self.run is not None:
            self.run.tree.clear()


def open_source(path: Path, *, sha256: str | None) -> Source:
    """A run's folder (its newest checkpoint) or another program's weights; ConfigError where it is neither."""
    if reading.is_foreign(path) or not path.exists():
        found = reading.read(path, sha256=sha256)
        ours = found.ours
        return Source(
            _name(path),
            origin.layout(found),
            found.online,
            found.target,
            found.classifier,
            found.pixels if ours is None else pixels_of(ours.config, ours.about),
            None,
            found,
        )
    if sha256 is not None:
        raise ConfigError(f"--sha256 is of a file, and {path} is a folder")
    return _of_run(path)


def _name(path: Path) -> str:
    """What it is called, also where a path is `.` or ends in `..`, as a text, which a name need not be."""
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return name.encode(errors="replace").decode()


def _of_run(path: Path) -> Source:
    with Store(checkpoints_of(path), read_only=True) as store:
        step = store.latest()
        if step is None:
            raise none_yet(path)
        about, tree = store.about(step), store.tree(step)
    config = read_stored(about["config"])
    run = Run(step, about["total_steps"], tree, about, config)
    both = {part: _encoder(tree[part], config) for part in ("online", "target") if tree.get(part) is not None}
    layout = origin.of_run(about, step).text
    return Source(_name(path), layout, both["online"], both.get("target"), None, pixels_of(config, about), run, None)


def _encoder(network: dict[str, Any], config: Config) -> Encoder:
    tensors = torch_names.to_torch(network)
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith("fc.")}
    encoder = weights.encoder(tensors, head)
    wanted = dataclasses.replace(config.model, dtype=encoder.model.dtype)
    if encoder.model != wanted:
        raise ConfigError(f"the checkpoint holds {encoder.model}, and its config says {wanted}")
    return encoder


def pixels_of(config: Config, about: dict[str, Any]) -> Pixels:
    """What a run's encoder expects of images."""
    values, size = about["values"], config.views.size
    return Pixels(
        size=size,
        resize=config.eval.resize or size,
        dtype=values["dtype"],
        range=(values["low"], values["high"]),
        mean=config.data.mean,
        std=config.data.std,
    )


def portable(source: Source, which: str, classifier: Classifier | None, licence: str | None) -> Portable:
    """One encoder of a source, on its way to another program."""
    encoder, run, found = source.encoder(which), source.run, source.found
    ours = None if found is None else found.ours
    if run is not None:
        comes, config = origin.of_run(run.about, run.step), run.about["config"]
    else:
        assert found is not None
        comes, config = origin.of_file(found), None if ours is None else ours.about["config"]
    return Portable(
        backbone=encoder.backbone,
        model=encoder.model,
        channels=encoder.channels,
        pixels=source.pixels,
        classifier=classifier or source.classifier,
        name=source.name,
        origin=comes.text,
        which=which if source.run is not None or encoder.head else None,
        license=licence or ("other" if comes.license_note else None),
        license_note=comes.license_note,
        config=config,
    )
