"""Backbones by names and shapes alone: whether tensors are one, whole, and whether a classifier fits it."""

from collections.abc import Mapping

import numpy as np

from moco_jax.checkpoints.torch_names import BATCH_COUNT
from moco_jax.checkpoints.weights import Classifier, Tensors, listed
from moco_jax.config import ConfigError, Model
from moco_jax.models.resnet import ARCHS, STEMS, BasicBlock


def expansion(model: Model) -> int:
    """Channels that leave a block, over the width of its stage."""
    return 1 if ARCHS[model.arch].block is BasicBlock else 4


def feature_size(model: Model) -> int:
    """D, the number of backbone features of an image."""
    return model.width * 2 ** (len(ARCHS[model.arch].stage_sizes) - 1) * expansion(model)


def shapes(model: Model, channels: int) -> dict[str, tuple[int, ...]]:
    """Name and shape, in torch's layout, of every tensor of a backbone for images of `channels`."""
    out: dict[str, tuple[int, ...]] = {}

    def layer(conv: str, norm: str, *shape: int) -> None:
        out[f"{conv}.weight"] = shape
        out.update({f"{norm}.{leaf}": shape[:1] for leaf in ("weight", "bias", "running_mean", "running_var")})

    size, before, grows = STEMS[model.stem].size, model.width, expansion(model)
    layer("conv1", "bn1", model.width, channels, size, size)
    for stage, blocks in enumerate(ARCHS[model.arch].stage_sizes):
        width = model.width * 2**stage
        after = width * grows
        for i in range(blocks):
            block = f"layer{stage + 1}.{i}"
            if grows == 1:
                kernels = [(width, before, 3), (width, width, 3)]
            else:
                kernels = [(width, before, 1), (width, width, 3), (after, width, 1)]
            for k, (out_channels, in_channels, side) in enumerate(kernels, 1):
                layer(f"{block}.conv{k}", f"{block}.bn{k}", out_channels, in_channels, side, side)
            if before != after:
                layer(f"{block}.downsample.0", f"{block}.downsample.1", after, before, 1, 1)
            before = after
    return out


def check_backbone(tensors: Mapping[str, np.ndarray], model: Model, channels: int, *, what: str) -> None:
    """Raises ConfigError unless the tensors are exactly a backbone of that architecture; `what` names them."""
    wanted = shapes(model, channels)
    if missing := [name for name in wanted if name not in tensors]:
        raise ConfigError(f"{what}: {model.arch} needs {listed(missing)}, which is not there")
    if left := [name for name in tensors if name not in wanted]:
        raise ConfigError(f"{what}: {model.arch} has no place for {listed(left)}")
    for name, shape in wanted.items():
        if tensors[name].dtype.kind != "f":
            raise ConfigError(f"{what}: {name} is of dtype {tensors[name].dtype}; weights are floating point numbers")
        if tensors[name].shape != shape:
            raise ConfigError(
                f"{what}: {name} is {tensors[name].shape}, where {model.arch} of width {model.width} for {channels} "
                f"channels has {shape}"
            )


def check_classifier(classifier: Classifier, model: Model, *, what: str) -> None:
    """Raises ConfigError unless weight, bias and names of a classifier fit each other and the features."""
    rows, size = len(classifier.bias), feature_size(model)
    if classifier.bias.ndim != 1 or rows == 0 or classifier.weight.shape != (rows, size):
        raise ConfigError(
            f"{what}: the classifier's weight is {classifier.weight.shape} and its bias {classifier.bias.shape}; on "
            f"{size} features they are (classes, {size}) and (classes,)"
        )
    if classifier.names is not None and len(classifier.names) != rows:
        raise ConfigError(f"{what}: there are {len(classifier.names)} class names for {rows} classes")


def without_counts(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The tensors without torch's counts of batches, which nothing here reads."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("." + BATCH_COUNT)}


def with_counts(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The tensors and, beside each running mean, a count of batches of 0, which torch's batch norm keeps."""
    norms = [name.removesuffix("running_mean") for name in tensors if name.endswith(".running_mean")]
    return {**tensors, **{norm + BATCH_COUNT: np.zeros((), np.int64) for norm in norms}}
