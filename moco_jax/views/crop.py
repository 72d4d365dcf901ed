"""Random resized crops on the device, from resident images of one size: torchvision's boxes and Pillow's resize."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

TRIES = 10  # as torchvision, before the central box


class Box(NamedTuple):
    """A rectangle in pixels, each () int32."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def random_resized_crop(
    key: jax.Array, image: jax.Array, *, scale: tuple[float, float], ratio: tuple[float, float], size: int
) -> jax.Array:
    """A random part of the image at a fixed size: (H, W, C) -> (size, size, C), same dtype (torchvision's defaults)."""
    return crop_and_resize(image, draw_box(key, image.shape[0], image.shape[1], scale=scale, ratio=ratio), size)


def draw_box(key: jax.Array, height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """The box of torchvision's RandomResizedCrop: area uniform in `scale` of the image, aspect log-uniform in `ratio`.

    Ten tries, then the largest centred box whose aspect is within `ratio`. Always drawn in float32, so that double
    precision changes no box.
    """
    u = random.uniform(key, (2 * TRIES + 2,), jnp.float32)  # in one call: every call costs a second to compile
    area, aspect, place = u[:TRIES], u[TRIES : 2 * TRIES], u[2 * TRIES :]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(log_low + (log_high - log_low) * aspect)
    sides = jnp.round(jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)])).astype(jnp.int32)  # (2, TRIES)
    limits = jnp.array([height, width], jnp.int32)
    fits = jnp.all((sides > 0) & (sides <= limits[:, None]), axis=0)  # (TRIES,)
    sides = sides[:, jnp.argmax(fits)]  # (2,), the first that fits
    corner = (place * (limits - sides + 1)).astype(jnp.int32)  # never the count itself: place is at most 1 - 2**-23
    central = jnp.array(_central_box(height, width, ratio), jnp.int32)
    return Box(*jnp.where(jnp.any(fits), jnp.concatenate([corner, sides]), central))


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Top, left, height, width of the largest centred box whose aspect is within `ratio`."""
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def crop_and_resize(image: jax.Array, box: Box, size: int) -> jax.Array:
    """Pillow's `crop(box).resize((size, size), BILINEAR)`, antialiased: (H, W, C) -> (size, size, C), same dtype.

    Integers are rounded and clipped to what they can hold, 8-bit ones after each of the two passes. The first is along
    the rows, always; Pillow 13 takes the other first where the height shrinks much more than the width.
    """
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    rows = _weights(box.top, box.height, image.shape[0], size, dtype)  # (size, H)
    columns = _weights(box.left, box.width, image.shape[1], size, dtype)  # (size, W)
    # HIGHEST: 16-bit values and 8 bits of TF32 or bfloat16 do not go together.
    out = jnp.einsum("pw,hwc->hpc", columns, image.astype(dtype), precision=lax.Precision.HIGHEST)
    if image.dtype == jnp.uint8:
        out = jnp.floor(out + 0.5).astype(jnp.uint8)
    out = jnp.einsum("oh,hpc->opc", rows, out.astype(dtype), precision=lax.Precision.HIGHEST)
    if jnp.issubdtype(image.dtype, jnp.integer):
        limits = jnp.iinfo(image.dtype)
        out = jnp.clip(jnp.floor(out + 0.5), limits.min, limits.max)
    return out.astype(image.dtype)


def _weights(start: jax.Array, length: jax.Array, pixels: int, size: int, dtype: jnp.dtype) -> jax.Array:
    """Pillow's triangle filter for one axis: (size, pixels), what each output takes of each input pixel.

    Only pixels of the crop, `length` from `start`, are taken; every row sums to 1. The filter is as wide as one output
    pixel where the image shrinks, and one input pixel where it grows.
    """
    step = length.astype(dtype) / size
    centers = (jnp.arange(size, dtype=dtype) + 0.5) * step  # (size,), from the crop's edge
    inputs = jnp.arange(pixels, dtype=jnp.int32) - start  # (pixels,), from the crop's edge
    distance = jnp.abs(inputs.astype(dtype)[None, :] + 0.5 - centers[:, None]) / jnp.maximum(step, 1)
    inside = (inputs >= 0) & (inputs < length)
    weights = jnp.where(inside[None, :], jnp.maximum(1 - distance, 0), 0)  # (size, pixels)
    return weights / jnp.sum(weights, axis=1, keepdims=True)
