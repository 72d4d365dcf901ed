"""What travels: the weights of encoders as other programs name them, whatever file they come from or go to.

Tensors are numpy arrays under torchvision's names and in torch's layouts (`torch_names`), so that nothing here needs
torch.
"""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from moco_jax.checkpoints import backbones, torch_names
from moco_jax.checkpoints.messages import listed
from moco_jax.config import BatchNorm, ConfigError, Model
from moco_jax.models.encoder import from_config
from moco_jax.models.resnet import ARCHS, STEMS, BasicBlock

HEADS = {"linear": ("fc.weight", "fc.bias"), "mlp": ("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias")}

Tensors = dict[str, np.ndarray]  # "layer1.0.conv1.weight" -> (out, in, h, w)


class Pixels(NamedTuple):
    """What an encoder expects of images: a centre view of `size`, values mapped to 0..1, then standardised."""

    size: int  # side of the view in pixels
    resize: int  # the shorter side before it is cut
    dtype: str  # as stored: uint8, uint16, float32
    range: tuple[float, float]  # stored values that become 0 and 1
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]
    filter: str = "bilinear"  # that resizes, of `data.crops.FILTERS`


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


class Origin(NamedTuple):
    """Where weights come from: kept, as a dict, with a run that began from them and in a folder that is made of them.

    In a run it is `origin` of its description, or of its `init`.
    """

    text: str
    license_note: str  # sentences about their licence, or ""


class Portable(NamedTuple):
    """An encoder on its way to another program, and what its card says."""

    backbone: Tensors
    model: Model
    channels: int
    pixels: Pixels | None  # None: nobody says
    classifier: Classifier | None
    name: str  # of the file or folder it comes from
    origin: str  # what that is, in words
    which: str | None  # "online" or "target" of MoCo; None: nobody says how it was trained
    license: str | None  # an identifier such as "mit"; None: nobody says
    license_note: str  # a sentence about it, or ""
    config: dict[str, Any] | None  # of the run that made it, where that is known


class Imported(NamedTuple):
    """An encoder as another program's folder holds it, without a head."""

    backbone: Tensors
    classifier: Classifier | None
    pixels: Pixels | None  # None: nobody says
    model: Model  # arch, stem, width; head and dim as the default
    layout: str  # what the folder is, in words
    origin: Origin | None  # where what it was made of comes from; None: nobody says


def describe(tensors: Tensors) -> Model:
    """Architecture, stem and width of a ResNet by its backbone's names and shapes; head and dim as the default.

    Raises ConfigError where it is none of the ResNets here.
    """
    if "conv1.weight" not in tensors or tensors["conv1.weight"].ndim != 4:
        raise ConfigError("the weights have no first convolution conv1.weight of 4 axes: they are of no ResNet")
    width, _, size, _ = tensors["conv1.weight"].shape
    if empty := [name for name, value in tensors.items() if not value.size]:
        raise ConfigError(f"{listed(empty)} is empty: a layer of no channels is none")
    stages = _stages(tensors)
    basic = not any(".conv3." in name for name in tensors)
    arch = next((n for n, a in ARCHS.items() if a.stage_sizes == stages and (a.block is BasicBlock) == basic), None)
    if arch is None:
        kind = "basic blocks" if basic else "bottlenecks"
        of = f"{len(stages)} stages, {stages[:8]} {kind}"
        raise ConfigError(f"the weights are of a ResNet with {of}, which is none of {', '.join(ARCHS)}")
    stem = next((n for n, s in STEMS.items() if s.size == size), None)
    if stem is None:
        sizes = " or ".join(str(s.size) for s in STEMS.values())
        raise ConfigError(f"conv1.weight is of a convolution {size} pixels wide; the stems here have {sizes}")
    return Model(arch=arch, stem=stem, width=width)


def encoder(backbone: Tensors, head: Tensors) -> Encoder:
    """An encoder of a backbone and, where there is one, a projection head `fc.*`; float16 is widened, exactly.

    Raises ConfigError, naming the tensor, where one is missing, left over, of another shape or not finite.
    """
    model = describe(backbone)
    if head:
        names = HEADS["linear"] if "fc.weight" in head else HEADS["mlp"]
        if head.keys() != set(names):
            raise ConfigError(f"its head is {listed(head)}, which is neither MoCo v1's fc nor v2's fc.0 and fc.2")
        kind = "linear" if names is HEADS["linear"] else "mlp"
        model = dataclasses.replace(model, head=kind, dim=head[names[-1]].size)
    found = Encoder(floats(backbone), floats(head), model, backbone["conv1.weight"].shape[1])
    backbones.check(backbone | head, model, found.channels, with_head=bool(head))
    return found


def network(encoder: Encoder) -> dict[str, Any]:
    """{"params": {"backbone"[, "head"]}, "batch_stats": {"backbone"}} in our layouts, without a copy.

    Raises ConfigError, naming the tensor, where one is missing, left over or of another shape.
    """
    like = shapes(encoder.model, encoder.channels, with_head=bool(encoder.head))
    return dict(torch_names.from_torch(encoder.backbone | encoder.head, like))


@functools.cache
def shapes(model: Model, channels: int, *, with_head: bool) -> dict[str, Any]:
    """The tree of shapes of an encoder, with its projection head or without."""
    made = from_config(model, BatchNorm(1), channels=channels, size=8, dtype=np.dtype("float32"))
    whole = jax.eval_shape(made.init, jax.random.key(0))
    parts = ("backbone", "head") if with_head else ("backbone",)
    return {kind: {k: v for k, v in tree.items() if k in parts} for kind, tree in whole.items()}


def classifier(
    weight: np.ndarray, bias: np.ndarray, encoder: Encoder, names: tuple[str, ...] | None = None
) -> Classifier:
    """A classifier on an encoder's features; ConfigError where it has another width, or another number of names."""
    check_classifier(Classifier(weight, bias, names), encoder.model)
    found = floats({"fc.weight": weight, "fc.bias": bias})
    return Classifier(found["fc.weight"], found["fc.bias"], names)


def check_classifier(classifier: Classifier, model: Model) -> None:
    """Raises ConfigError unless weight, bias and names of a classifier fit each other and the features."""
    (weight, bias, names), size = classifier, backbones.feature_size(model)
    if bias.ndim != 1 or not bias.size or weight.shape != (len(bias), size):
        raise ConfigError(
            f"the classifier is {weight.shape} with bias {bias.shape}; on {size} features they are (classes, {size}) "
            "and (classes,)"
        )
    if names is not None and len(names) != len(bias):
        raise ConfigError(f"there are {len(names)} class names for {len(bias)} classes")


def floats(tensors: Tensors) -> Tensors:
    """The tensors, float16 as float32; ConfigError for other kinds of numbers, and for numbers that are none."""
    out = {}
    for name, value in tensors.items():
        if value.dtype not in (np.float16, np.float32, np.float64):
            raise ConfigError(f"{name} is {value.dtype}; weights are floating-point numbers")
        if not np.isfinite(value).all():
            raise ConfigError(f"{name} holds numbers that are not finite: such a network can only say nan")
        if name.endswith("running_var") and value.min(initial=0) < 0:
            raise ConfigError(f"{name} is a variance, and {value.min():g} is in it: no batch norm has one below 0")
        out[name] = value.astype(np.float32) if value.dtype == np.float16 else value
    return out


def _stages(tensors: Tensors) -> tuple[int, ...]:
    """Blocks of each stage."""
    blocks: dict[int, int] = {}
    for name in tensors:
        if match := re.match(r"layer([0-9]{1,3})\.([0-9]{1,3})\.", name):
            stage, block = map(int, match.groups())
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    return tuple(blocks[stage] for stage in sorted(blocks))
