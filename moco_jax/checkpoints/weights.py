"""What travels: the weights of encoders as other programs name them, whatever file they come from or go to.

Tensors are numpy arrays under torchvision's names and in torch's layouts (`torch_names`), so that nothing here needs
torch.
"""

from typing import Any, NamedTuple

import numpy as np

from moco_jax.config import ConfigError, Model
from moco_jax.models.resnet import ARCHS, STEMS, BasicBlock

Tensors = dict[str, np.ndarray]  # "layer1.0.conv1.weight" -> (out, in, h, w)


class Pixels(NamedTuple):
    """What an encoder expects of images: a centre view of `size`, values mapped to 0..1, then standardised."""

    size: int  # side of the view in pixels
    resize: int  # the shorter side before it is cut
    dtype: str  # as stored: uint8, uint16, float32
    range: tuple[float, float]  # stored values that become 0 and 1
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]


class Classifier(NamedTuple):
    """A linear layer on backbone features: weight (classes, D), bias (classes,)."""

    weight: np.ndarray
    bias: np.ndarray
    names: tuple[str, ...] | None  # of the classes; None: nobody says


class Encoder(NamedTuple):
    """One encoder without its training."""

    backbone: Tensors
    head: Tensors  # "fc.*", or nothing
    model: Model  # arch, stem, width; head and dim where there is a head
    channels: int


class Portable(NamedTuple):
    """An encoder on its way to another program, and what its card says."""

    backbone: Tensors
    model: Model
    channels: int
    pixels: Pixels | None  # None: nobody says
    classifier: Classifier | None
    name: str  # of the file or folder it comes from
    origin: str  # what that is, in words
    which: str  # "online" or "target"
    license: str | None  # an identifier such as "mit"; None: nobody says
    license_note: str  # a sentence about it, or ""
    config: dict[str, Any] | None  # of the run that made it, where that is known


def describe(tensors: Tensors) -> Model:
    """Architecture, stem and width of a ResNet by its backbone's names and shapes; head and dim as the default.

    Raises ConfigError where it is none of the ResNets here.
    """
    if "conv1.weight" not in tensors or tensors["conv1.weight"].ndim != 4:
        raise ConfigError("the weights have no first convolution conv1.weight of 4 axes: they are of no ResNet")
    width, _, size, _ = tensors["conv1.weight"].shape
    stages = _stages(tensors)
    basic = not any(".conv3." in name for name in tensors)
    arch = next((n for n, a in ARCHS.items() if a.stage_sizes == stages and (a.block is BasicBlock) == basic), None)
    if arch is None:
        kind = "basic blocks" if basic else "bottlenecks"
        raise ConfigError(f"the weights are of a ResNet with {stages} {kind}, which is none of {', '.join(ARCHS)}")
    stem = next((n for n, s in STEMS.items() if s.size == size), None)
    if stem is None:
        sizes = " or ".join(str(s.size) for s in STEMS.values())
        raise ConfigError(f"conv1.weight is of a convolution {size} pixels wide; the stems here have {sizes}")
    return Model(arch=arch, stem=stem, width=width)


def _stages(tensors: Tensors) -> tuple[int, ...]:
    """Blocks of each stage."""
    blocks: dict[int, int] = {}
    for name in tensors:
        stage, _, rest = name.removeprefix("layer").partition(".")
        if name.startswith("layer") and stage.isdigit() and (block := rest.split(".")[0]).isdigit():
            blocks[int(stage)] = max(blocks.get(int(stage), 0), int(block) + 1)
    return tuple(blocks[stage] for stage in sorted(blocks))
