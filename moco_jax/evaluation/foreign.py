"""Files of weights that other programs wrote, opened for evaluation: no training config, no images, no step."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from moco_jax import parallel
from moco_jax.checkpoints import reading, recognise, weights
from moco_jax.checkpoints.recognise import Found
from moco_jax.config import Config, ConfigError, Data, Eval, Views
from moco_jax.evaluation.encoder import Preprocessing, Values, preprocessing_of
from moco_jax.state import Network


class Foreign(NamedTuple):
    """What a file of weights says, in the terms of a run."""

    weights: weights.Encoder
    preprocessing: Preprocessing
    config: Config  # what options of data need: dtype, range, mean, std, size; of a run's own file that of the run
    source: str  # label of the user's own images, of a run's own file
    classifier: weights.Classifier | None
    origin: str  # which program's, in words


def read(path: Path, preprocessing: Preprocessing | None = None) -> Foreign:
    """What a file holds; its own record of how images are prepared, or `preprocessing` instead.

    Raises ConfigError where `reading.read` does, for a file that has no such record where none is given, and for one
    that does not fit its weights.
    """
    found = reading.read(path)
    online, ours = found.online, found.ours
    if ours is not None:
        config, values, source = ours.config, Values(**ours.about["values"]), ours.about["objects"]["source"]
        _check_model(config, online, path)
        how = preprocessing or preprocessing_of(config, values)
        origin = f"{_said(found, preprocessing)}; step {ours.step} of a run of moco_jax"
        return Foreign(online, _checked(how, online, path), config, source, found.classifier, origin)
    how = _checked(preprocessing or _recorded(found, path), online, path)
    return Foreign(online, how, _config_of(online, how), "", found.classifier, _said(found, preprocessing))


def placed(found: weights.Encoder, like: Any) -> Network:
    """The network of a file on this run's devices, in the dtypes of `like` (arrays or their shapes)."""
    trees = weights.network(found)
    shaped = {"params": like.params, "batch_stats": like.batch_stats}
    cast = jax.tree.map(lambda a, wanted: np.ascontiguousarray(a, wanted.dtype), trees, shaped)
    return Network(**parallel.put_data(cast))


def _said(found: Found, preprocessing: Preprocessing | None) -> str:
    """Which program's file, which of its authors' files, how images are taken to be, what is done to its numbers."""
    words = [found.layout, *([found.published] if found.published else [])]
    if found.assumed and preprocessing is None:
        whose = "CIFAR-10's" if found.pixels is recognise.CIFAR else "ImageNet's"
        words.append(f"images prepared as {whose}, which nothing in it says")
    if any(t.dtype == np.float64 for t in found.online.backbone.values()):
        words.append("its float64 numbers in the precision of model.dtype")
    return ", ".join(words)


def _recorded(found: Found, path: Path) -> Preprocessing:
    pixels, channels = found.pixels, found.online.channels
    if pixels is None:
        raise ConfigError(
            f"{path} takes images of {channels} channels, and nothing in it that is followed here says of which size, "
            "dtype, range, mean and std: a .pth.tar, timm or Hugging Face folder of the run does; or give them from "
            "Python, moco_jax.load_encoder(path, preprocessing=moco_jax.evaluation.encoder.Preprocessing(...))"
        )
    return Preprocessing(**pixels._asdict(), channels=channels, computed=str(parallel.compute_dtype("auto")))


def _config_of(found: weights.Encoder, how: Preprocessing) -> Config:
    """The config of a run that would have made the file, as far as an evaluation looks at it; it names no images.

    8-bit images of three channels are read as RGB whatever they are, as the loaders of such encoders do.
    """
    channels = 3 if (how.channels, how.dtype) == (3, "uint8") else None
    data = Data(dataset=None, channels=channels, range=how.range, mean=how.mean, std=how.std, path="streamed")
    views, evaluation = Views(size=how.size), Eval(resize=how.resize)
    return dataclasses.replace(Config(), data=data, views=views, model=found.model, eval=evaluation)


def _check_model(config: Config, found: weights.Encoder, path: Path) -> None:
    said, holds = dataclasses.replace(config.model, dtype="auto"), dataclasses.replace(found.model, dtype="auto")
    if not found.head:  # then it says nothing of one
        said = dataclasses.replace(said, head=holds.head, dim=holds.dim)
    if said != holds:
        raise ConfigError(f"{path} says that it is of {said}, and holds the weights of {holds}")


def _checked(how: Preprocessing, found: weights.Encoder, path: Path) -> Preprocessing:
    if how.channels != found.channels:
        raise ConfigError(f"preprocessing is of {how.channels} channels, and {path} takes images of {found.channels}")
    for name in ("mean", "std"):
        if len(getattr(how, name)) not in (1, how.channels):
            raise ConfigError(f"preprocessing has {name} {getattr(how, name)}, and images have {how.channels} channels")
    return how
