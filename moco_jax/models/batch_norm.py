"""Batch norm whose statistics belong to groups of the global batch, wherever the images of a group lie."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from moco_jax.core import axis

MOMENTUM = 0.1  # torch's convention: the share of the new statistics
EPSILON = 1e-5


class Layout(NamedTuple):
    """How the rows of one device fall into groups."""

    groups: int  # groups on this device
    members: int  # images of a group on this device
    span: int  # devices that share one group


class GroupBatchNorm(nn.Module):
    """Batch norm over contiguous groups of `group_size` images of the global batch; 0 is the whole global batch.

    A group inside a device needs no axis name; a group over several devices, and group 0, average their moments over
    the mapped axis. Momentum, epsilon and the unbiased running variance are torch's (`torch.nn.BatchNorm2d`). Result in
    `dtype`, statistics and normalisation in at least float32, running statistics in at least float32 as `param_dtype`.
    """

    group_size: int
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalise (n, ..., C) with the statistics of its groups if `train`, else with the running statistics.

        Running statistics become the mean over the groups *of this device*: average them over devices afterwards.
        Raises ValueError where images, devices and groups do not divide, and where a group holds one value per channel.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        stored = jnp.promote_types(self.param_dtype, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), stored)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), stored)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))

        # Initialisation sees one image outside of any mapped axis, so it takes the running statistics too.
        if not train or self.is_initializing():
            y = wide.reshape(1, 1, -1, channels)
            mean, var = running_mean.value[None], running_var.value[None]
        else:
            layout = group_layout(x.shape[0], self.group_size)
            y = wide.reshape(layout.groups, layout.members, -1, channels)
            count = layout.members * layout.span * y.shape[2]
            if count < 2:
                raise ValueError(
                    f"batch norm needs 2 values per channel, a group here holds {count}; raise bn.group_size"
                )
            mean, var = group_moments(y, layout)  # (groups, C) each
            # Normalising takes the biased variance, the running one is unbiased (torch).
            running_mean.value = _advance(running_mean.value, mean)
            running_var.value = _advance(running_var.value, var * (count / (count - 1)))

        gain = lax.rsqrt(var + EPSILON) * scale[None]  # (groups, C)
        shift = bias[None] - mean * gain  # (groups, C)
        y = scaled(y, gain, shift)
        return y.reshape(x.shape).astype(self.dtype)


def group_layout(n: int, group_size: int) -> Layout:
    """How `n` images per device fall into groups; asks the axis for its size only if a group may leave the device.

    Raises ValueError if `n` and `group_size` do not divide one another, or spanning groups do not divide the devices.
    """
    if group_size < 0:
        raise ValueError(f"bn.group_size {group_size} is negative; use 0 for the whole global batch")
    if group_size == 0:
        return Layout(1, n, axis.size())
    if n % group_size == 0:
        return Layout(n // group_size, group_size, 1)
    if group_size % n:
        raise ValueError(
            f"{n} images per device and bn.group_size {group_size} do not divide one another; change either"
        )
    span, devices = group_size // n, axis.size()
    if devices % span:
        raise ValueError(
            f"bn.group_size {group_size} spans {span} devices at {n} images each, which does not divide {devices} "
            f"devices; use a bn.group_size that divides the {n * devices} images of the global batch"
        )
    return Layout(1, n, span)


def group_moments(y: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance (groups, C) of `y` (groups, members, pixels, C), in one pass over the values."""
    moments = jnp.stack([y.mean((1, 2)), (y * y).mean((1, 2))])  # (2, groups, C)
    if layout.span > 1:
        moments = lax.pmean(moments, axis.AXIS, axis_index_groups=axis.subsets(layout.span))
    # E[x^2] - E[x]^2 cancels: rounding can take it below zero, and rsqrt then to nan.
    return moments[0], jnp.maximum(moments[1] - moments[0] ** 2, 0)


@jax.custom_vjp
def scaled(y: jax.Array, gain: jax.Array, shift: jax.Array) -> jax.Array:
    """y (groups, members, pixels, C) times its group's gain (groups, C), plus its shift.

    Its gradient is written out to keep XLA from detours. It would see that the bias's gradient is a sum over the
    groups, and sum all values once more for it; on a GPU it sums some shapes from a copy in float32, but not these:
    over the pixels of an image first, then over images; and on a CPU an axis of length 1, of a device that holds one
    group, makes the sum of products sixty times as long.
    """
    return y * gain[:, None, None] + shift[:, None, None]


def _scaled(y: jax.Array, gain: jax.Array, shift: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return scaled(y, gain, shift), (y, gain)


def _scaled_back(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    y, gain = kept
    groups, members, pixels, channels = y.shape
    images = (groups * members, pixels, channels)
    rows, of_rows = y.reshape(images), gradient.reshape(images)
    by_image = lax.optimization_barrier(((of_rows * rows).sum(1), of_rows.sum(1)))  # (groups x members, C) each
    of_gain, of_shift = lax.optimization_barrier(
        tuple(s.reshape(groups, members, channels).sum(1) for s in by_image)  # (groups, C) each
    )
    return gradient * gain[:, None, None], of_gain, of_shift


scaled.defvjp(_scaled, _scaled_back)


def _advance(running: jax.Array, new: jax.Array) -> jax.Array:
    """Running statistics (C,) after the statistics (groups, C) of a batch."""
    return ((1 - MOMENTUM) * running + MOMENTUM * new.mean(0)).astype(running.dtype)
