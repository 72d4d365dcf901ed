"""ResNets as torchvision builds them (v1.5: the stride is on the 3x3), NHWC, returning the maps of all stages."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from moco_jax import config
from moco_jax.models.batch_norm import GroupBatchNorm
from moco_jax.models.pooling import max_pool

Layer = Callable[..., Any]  # makes a linen module, `name` and all: what the blocks take for convolution and norm


def convolved(x: jax.Array, kernel: jax.Array, *how: Any, **named: Any) -> jax.Array:
    """`lax.conv_general_dilated`, whose gradients read `x` and the gradient of the result as arrays.

    XLA:CPU would compute the batch norm and ReLU around a convolution again for either of its gradients, while it
    transposes what comes out: a step takes 1.1 to 1.2 times as long. Barriers stay where `moco_jax/cli/xla.py` says so.
    """

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, *how, **named)

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        x = lax.optimization_barrier(x)
        return conv(x, kernel), (x, kernel)

    def back(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, kernel = kept
        gradient = lax.optimization_barrier(gradient)
        (of_x,) = jax.linear_transpose(lambda x: conv(x, kernel), x)(gradient)
        (of_kernel,) = jax.linear_transpose(lambda kernel: conv(x, kernel), kernel)(gradient)
        return of_x, of_kernel

    differentiable = jax.custom_vjp(conv)
    differentiable.defvjp(forward, back)
    return differentiable(x, kernel)


def convolution(
    features: int, size: int, stride: int = 1, *, dtype: DTypeLike, param_dtype: DTypeLike, name: str
) -> nn.Conv:
    """A square convolution without bias, padded as torch pads: `size // 2` on every side.

    XLA's "SAME" pads strided convolutions asymmetrically, which moves every map by a pixel against torch's.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),  # torch: kaiming_normal_, fan_out
        dtype=dtype,
        param_dtype=param_dtype,
        conv_general_dilated=convolved,
        name=name,
    )


def shortcut(x: jax.Array, features: int, stride: int, *, conv: Layer, norm: Layer, train: bool) -> jax.Array:
    """(n, H, W, C) as the residual branch's (n, H', W', features): itself, or through a strided 1x1 convolution."""
    if stride == 1 and x.shape[-1] == features:
        return x
    # Slicing is what a strided 1x1 convolution reads; XLA:CPU is slow at the gradient of the strided form.
    x = conv(features, 1, name="downsample_conv")(x[:, ::stride, ::stride])
    return norm(name="downsample_bn")(x, train=train)


@jax.custom_vjp
def rectified_sum(y: jax.Array, other: jax.Array) -> jax.Array:
    """relu(y + other), both (n, H, W, C).

    Its gradient asks the result where it was positive, which the next layer keeps anyway. Left to itself XLA computes
    both branches once more instead, which reads twice as much: 4 % of what a step of ResNet-50 moves on a GPU.
    """
    return nn.relu(y + other)


def _rectified(y: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = rectified_sum(y, other)
    return out, out


def _rectified_back(out: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    both = jnp.where(lax.optimization_barrier(out) > 0, gradient, 0)  # not computed again
    return both, both


rectified_sum.defvjp(_rectified, _rectified_back)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, `width` channels out (arXiv:1512.03385, figure 5 left)."""

    width: int
    stride: int
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(n, H, W, C) to (n, H / stride, W / stride, width), sizes rounded up."""
        y = self.conv(self.width, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.width, 3, name="conv2")(y)
        y = self.norm(name="bn2")(y, train=train)
        return rectified_sum(y, shortcut(x, self.width, self.stride, conv=self.conv, norm=self.norm, train=train))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times `width` channels, beside a shortcut (figure 5 right, v1.5)."""

    width: int
    stride: int
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(n, H, W, C) to (n, H / stride, W / stride, 4 width), sizes rounded up."""
        y = self.conv(self.width, 1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.width, 3, self.stride, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        y = self.conv(4 * self.width, 1, name="conv3")(y)
        y = self.norm(name="bn3")(y, train=train)
        return rectified_sum(y, shortcut(x, 4 * self.width, self.stride, conv=self.conv, norm=self.norm, train=train))


class Stem(NamedTuple):
    """The first convolution, and whether a 3x3 max-pool of stride 2 follows."""

    size: int
    stride: int
    pool: bool


class Arch(NamedTuple):
    """The residual block and how many of them each stage stacks."""

    block: Layer
    stage_sizes: tuple[int, ...]


STEMS: dict[str, Stem] = {"imagenet": Stem(7, 2, pool=True), "cifar": Stem(3, 1, pool=False)}

ARCHS: dict[str, Arch] = {
    "resnet_tiny": Arch(BasicBlock, (1, 1, 1)),
    "resnet18": Arch(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Arch(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Arch(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Arch(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Arch(Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """Stem and stages; stage i has `width * 2**i` channels (times four with bottlenecks), strides 1, 2, 2, ..."""

    arch: Arch
    stem: Stem
    width: int
    norm: Layer
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """The maps of all stages, coarsest last, each (n, H_i, W_i, C_i) in `dtype`, of images (n, H, W, C)."""
        conv = partial(convolution, dtype=self.dtype, param_dtype=self.param_dtype)
        x = conv(self.width, self.stem.size, self.stem.stride, name="conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x, train=train))
        if self.stem.pool:
            x = max_pool(x)

        maps = []
        for i, blocks in enumerate(self.arch.stage_sizes):
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                block = self.arch.block(self.width * 2**i, stride, conv, self.norm, name=f"layer{i + 1}_{j}")
                x = block(x, train=train)
            maps.append(x)
        return maps


def build(arch: str, *, stem: str, width: int, group_size: int, dtype: DTypeLike) -> ResNet:
    """The ResNet `arch` of the table, computing in `dtype` with parameters in at least float32.

    `width` is the number of channels of the first stage (64 in the published nets). Raises ConfigError for names that
    are not in the tables.
    """
    if arch not in ARCHS:
        raise config.unknown("model.arch", arch, ARCHS)
    if stem not in STEMS:
        raise config.unknown("model.stem", stem, STEMS)
    param_dtype = jnp.promote_types(dtype, jnp.float32)
    norm = partial(GroupBatchNorm, group_size=group_size, dtype=dtype, param_dtype=param_dtype)
    return ResNet(ARCHS[arch], STEMS[stem], width, norm, dtype, param_dtype)
