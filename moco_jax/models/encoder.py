"""The encoder as plain functions of its backbone, global average pooling and projection head."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moco_jax import config
from moco_jax.config import ConfigError
from moco_jax.models import heads, resnet

Tree = Any  # a pytree of arrays


class Encoder(NamedTuple):
    """Functions of parameters and running statistics; they hold no arrays."""

    # key -> {"params": {"backbone", "head"}, "batch_stats"}; no collective
    init: Callable[[jax.Array], dict[str, Tree]]
    # params, batch_stats, x (n, H, W, C) -> z (n, C) by the statistics of the batch, not normalised; new batch_stats
    project: Callable[[Tree, Tree, jax.Array], tuple[jax.Array, Tree]]
    # params, batch_stats, x (n, H, W, C) -> {"backbone": (n, D), "head": (n, C)} by the running statistics; without a
    # projection head {"backbone"} alone
    features: Callable[[Tree, Tree, jax.Array], dict[str, jax.Array]]
    label: str  # what a checkpoint says it holds
    module: nn.Module | None = None  # backbone and pooling in linen, over the subtrees `backbone`; None: not in linen


class Pooled(nn.Module):
    """What is kept of an encoder after pretraining: backbone and pooling, without the head."""

    backbone: nn.Module

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Pooled features (n, D) of images (n, H, W, C), in at least float32."""
        return pool(self.backbone(x, train=train))


class Network(nn.Module):
    """Backbone, pooling and head under the parameter names `backbone` and `head`."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Pooled features (n, D) and projection (n, C) of images (n, H, W, C), both in at least float32."""
        pooled = pool(self.backbone(x, train=train))
        z = self.head(pooled, train=train)
        return pooled, z.astype(jnp.promote_types(z.dtype, jnp.float32))


class _NoHead(nn.Module):
    """In the place of a head: it has no parameters, and nobody asks for what it returns."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(n, D) as it is."""
        del train
        return x


def pool(maps: list[jax.Array]) -> jax.Array:
    """Mean (n, D) over the pixels of the coarsest map, the last of `maps`, summed in at least float32.

    Raises ConfigError if a backbone returned anything but a list of maps (n, H, W, D).
    """
    if not isinstance(maps, (list, tuple)) or not maps or maps[-1].ndim != 4:  # an array's [-1] would be its last image
        found = jax.tree.map(jnp.shape, maps)
        raise ConfigError(
            f"a backbone returns the list of its stages' maps (n, H, W, D), coarsest last; this one: {found}"
        )
    return maps[-1].astype(jnp.promote_types(maps[-1].dtype, jnp.float32)).mean((1, 2))


def build(backbone: nn.Module, head: nn.Module, *, input_shape: tuple[int, int, int], label: str) -> Encoder:
    """An encoder of any two linen modules.

    `backbone(x (n, H, W, C), train=) -> [map (n, H_i, W_i, D_i), ...]`, coarsest last; `head(x (n, D), train=) ->
    (n, C)`. Both may keep running statistics in `batch_stats`; other collections raise ConfigError. `input_shape` is
    (H, W, C) of one image.
    """
    network = Network(backbone, head)

    def init(key: jax.Array) -> dict[str, Tree]:
        variables = network.init(key, jnp.zeros((1, *input_shape)), train=False)
        others = sorted(set(variables) - {"params", "batch_stats"})
        if others:
            raise ConfigError(f"encoder {label!r} keeps {others}, but only params and batch_stats are carried along")
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def project(params: Tree, batch_stats: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
        variables = {"params": params, "batch_stats": batch_stats}
        (_, z), changed = network.apply(variables, x, train=True, mutable=["batch_stats"])
        return z, changed.get("batch_stats", {})

    def features(params: Tree, batch_stats: Tree, x: jax.Array) -> dict[str, jax.Array]:
        pooled, z = network.apply({"params": params, "batch_stats": batch_stats}, x, train=False)
        return {"backbone": pooled, "head": z}

    return Encoder(init, project, features, label, Pooled(backbone))


def headless(backbone: nn.Module, *, input_shape: tuple[int, int, int], label: str) -> Encoder:
    """An encoder without a projection head, to be evaluated: `build` without one; `project` raises ConfigError."""
    whole = build(backbone, _NoHead(), input_shape=input_shape, label=label)

    def project(params: Tree, batch_stats: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
        raise ConfigError(f"encoder {label!r} has no projection head, which pretraining needs; give it one by build()")

    def features(params: Tree, batch_stats: Tree, x: jax.Array) -> dict[str, jax.Array]:
        return {"backbone": whole.features(params, batch_stats, x)["backbone"]}

    return whole._replace(project=project, features=features)


def from_config(
    model: config.Model,
    bn: config.BatchNorm,
    *,
    channels: int,
    size: int,
    dtype: DTypeLike,
    with_head: bool = True,
) -> Encoder:
    """The encoder that a config describes, for images (n, size, size, channels), computing in `dtype`.

    Parameters are in at least float32, and so is the head, whose output the loss compares; without it, it is `headless`
    and model.head and model.dim are not read. Raises ConfigError for names that are not in the tables and numbers that
    cannot be.
    """
    for key, value, least in (
        ("model.width", model.width, 1),
        ("model.dim", model.dim, 1),
        ("bn.group_size", bn.group_size, 0),
    ):
        if value < least:
            raise ConfigError(f"{key} is {value}; it must be at least {least}")
    if model.head not in heads.HEADS:
        raise config.unknown("model.head", model.head, heads.HEADS)
    backbone = resnet.build(model.arch, stem=model.stem, width=model.width, group_size=bn.group_size, dtype=dtype)
    label, input_shape = label_of(model, with_head=with_head), (size, size, channels)
    if not with_head:
        return headless(backbone, input_shape=input_shape, label=label)
    head = heads.HEADS[model.head](model.dim, jnp.promote_types(dtype, jnp.float32))
    return build(backbone, head, input_shape=input_shape, label=label)


def label_of(model: config.Model, *, with_head: bool = True) -> str:
    """What a checkpoint says of the encoder that a config describes."""
    return f"{model.arch}(width={model.width}, stem={model.stem})" + f"+{model.head}{model.dim}" * with_head
