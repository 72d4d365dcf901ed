"""Backbones and heads by names and shapes alone, without tracing a network."""

from collections.abc import Mapping

import numpy as np

from moco_jax.checkpoints import torch_names
from moco_jax.checkpoints.torch_names import BATCH_COUNT
from moco_jax.config import Model
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


def head_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The same of its projection head."""
    size, dim = feature_size(model), model.dim
    if model.head == "linear":
        return {"fc.weight": (dim, size), "fc.bias": (dim,)}
    return {"fc.0.weight": (size, size), "fc.0.bias": (size,), "fc.2.weight": (dim, size), "fc.2.bias": (dim,)}


def check(tensors: Mapping[str, np.ndarray], model: Model, channels: int, *, with_head: bool = False) -> None:
    """Raises ConfigError, naming the tensor, unless these are exactly an encoder's of that architecture."""
    wanted = shapes(model, channels) | (head_shapes(model) if with_head else {})
    torch_names.check(tensors, wanted, whose=f"{model.arch} of width {model.width}")


def without_counts(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without torch's counts of batches, which nothing here reads."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("." + BATCH_COUNT)}


def with_counts(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors and, beside each running mean, a count of batches of 0, which torch's batch norm keeps."""
    norms = [name.removesuffix("running_mean") for name in tensors if name.endswith(".running_mean")]
    return {**tensors, **{norm + BATCH_COUNT: np.zeros((), np.int64) for norm in norms}}
