"""What the operations of a recipe do to one float image (H, W, C) in 0..1; torchvision's semantics on PIL images.

Each has a deterministic twin `adjust_*(image, ...)` and a random wrapper `random_*(key, image, *, ...)`, whose options
are the fields of the operation in `recipes.py`. Values stay floats between operations, where PIL rounds to 8 bits.
Draws are made in float32 whatever the precision of the image. Choices are selections, never branches: under `vmap` both
sides would be computed anyway.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax, random

REC601 = (0.299, 0.587, 0.114)  # luma of red, green, blue, as PIL's convert("L")


def _draws(key: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
    """(count,) uniform in [0, 1): all that one operation needs, in one call."""
    return random.uniform(key, (count,), jnp.float32).astype(dtype)


def _between(u: jax.Array, low: float, high: float) -> jax.Array:
    return low + (high - low) * u


def _blend(image: jax.Array, other: jax.Array | float, factor: jax.Array) -> jax.Array:
    """PIL's Image.blend(other, image, factor), clipped to 0..1; exactly the image where the factor is 1."""
    return jnp.clip(image * factor + other * (1 - factor), 0, 1)


def luma(image: jax.Array) -> jax.Array:
    """Rec. 601 gray of three channels: (H, W, 3) -> (H, W, 1)."""
    r, g, b = (image[:, :, c : c + 1] * weight for c, weight in enumerate(REC601))
    return r + g + b


def adjust_grayscale(image: jax.Array) -> jax.Array:
    """Luma in every channel: (H, W, 3) -> (H, W, 3)."""
    return jnp.broadcast_to(luma(image), image.shape)


def random_grayscale(key: jax.Array, image: jax.Array, *, p: float) -> jax.Array:
    """torchvision's RandomGrayscale(p)."""
    return jnp.where(_draws(key, 1, image.dtype)[0] < p, adjust_grayscale(image), image)


def adjust_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """All values times `factor`, clipped to 0..1: (H, W, C) -> (H, W, C)."""
    return _blend(image, 0, factor)


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Away from the mean luma (`factor` above 1) or towards it, clipped to 0..1: (H, W, C) -> (H, W, C).

    As PIL, three channels pivot on one mean, of the luma, rounded to 1/255. Any other number of channels has no luma:
    each pivots on its own mean, unrounded, since 1/255 is coarse for 16 bits.
    """
    if image.shape[2] == 3:
        pivot = jnp.floor(jnp.mean(luma(image), keepdims=True) * 255 + 0.5) / 255  # (1, 1, 1)
    else:
        pivot = jnp.mean(image, axis=(0, 1), keepdims=True)  # (1, 1, C)
    return _blend(image, pivot, factor)


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Away from the pixel's luma (`factor` above 1) or towards it, clipped to 0..1: (H, W, 3) -> (H, W, 3)."""
    return _blend(image, luma(image), factor)


def adjust_hue(image: jax.Array, turns: jax.Array) -> jax.Array:
    """Hue moved by `turns` of the colour circle, through HSV: (H, W, 3) -> (H, W, 3)."""
    r, g, b = image[:, :, 0], image[:, :, 1], image[:, :, 2]
    value = jnp.maximum(jnp.maximum(r, g), b)  # (H, W)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)  # (H, W)
    divisor = jnp.where(chroma > 0, chroma, 1)
    hue = jnp.where(
        value == r, (g - b) / divisor, jnp.where(value == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor)
    )  # in sixths of a turn; gray has none, and no chroma to show it
    hue = hue + 6 * turns

    def channel(offset: int) -> jax.Array:
        k = offset + hue
        k = k - 6 * jnp.floor(k / 6)  # a remainder, several times faster than XLA's on a CPU
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=2)


ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def adjust_color(
    image: jax.Array, factors: Sequence[jax.Array], places: jax.Array, *, kinds: Sequence[int] = (0, 1, 2, 3)
) -> jax.Array:
    """ADJUST[k](image, factor) for k in `kinds` and the factor beside it, in any order: (H, W, C) -> (H, W, C).

    `places` (len(kinds),) is a permutation: when each of them comes, 0 first.
    """

    def adjust_one(place: jax.Array, before: jax.Array) -> jax.Array:
        image = before
        for i, kind in enumerate(kinds):
            image = jnp.where(places[i] == place, ADJUST[kind](before, factors[i]), image)
        return image

    # A loop of 4 halves the time to compile, and its steps cannot be fused into one that recomputes the earlier ones.
    return lax.fori_loop(0, len(kinds), adjust_one, image)


def random_color_jitter(
    key: jax.Array,
    image: jax.Array,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    p: float,
) -> jax.Array:
    """torchvision's ColorJitter in random order, with probability p; a strength of 0 leaves its adjustment out."""
    u = _draws(key, 9, image.dtype)
    strengths = (brightness, contrast, saturation, hue)
    kinds = [k for k in range(4) if strengths[k] > 0]
    lows, highs = [max(0.0, 1 - x) for x in strengths[:3]] + [-hue], [1 + x for x in strengths[:3]] + [hue]
    factors = [_between(u[k], lows[k], highs[k]) for k in kinds]
    ranked = u[4 : 4 + len(kinds)]
    places = jnp.sum(ranked[None, :] < ranked[:, None], axis=1)  # (len(kinds),), a random permutation
    return jnp.where(u[8] < p, adjust_color(image, factors, places, kinds=kinds), image)


def adjust_blur(image: jax.Array, sigma: jax.Array, *, widest: float) -> jax.Array:
    """PIL's GaussianBlur(sigma): three box blurs along each axis, edges extended: (H, W, C) -> (H, W, C).

    `widest` is the largest sigma there can be, in pixels: it fixes the size of the box. A sampled Gaussian would be
    3/255 off at a sigma of 0.3, where it is not as wide as sigma. One matrix per image and axis, since different
    kernels for the images of a batch would make a grouped convolution, which is slow.
    """
    reach = math.floor((math.sqrt(4 * widest**2 + 1) - 1) / 2) + 1
    for _ in range(2):
        box = _box_blur(image.shape[0], sigma.astype(image.dtype), reach)
        blur = jnp.einsum("oi,ij,jk->ok", box, box, box, precision=lax.Precision.HIGHEST)
        image = jnp.einsum("oi,ihc->hoc", blur, image, precision=lax.Precision.HIGHEST)  # the axes change places
    return image


def _box_blur(length: int, sigma: jax.Array, reach: int) -> jax.Array:
    """(length, length): a box blur of variance sigma**2 / 3, whose outermost taps have the weight of a fraction."""
    variance = sigma**2 / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)  # taps of full weight on each side
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inputs = jnp.arange(length, dtype=jnp.int32)
    matrix = jnp.zeros((length, length), sigma.dtype)
    for tap in range(-reach, reach + 1):
        weight = jnp.clip(whole + part + 1 - abs(tap), 0, 1) / (2 * (whole + part) + 1)
        source = jnp.clip(inputs + tap, 0, length - 1)
        matrix = matrix + weight * (source[:, None] == inputs[None, :])
    return matrix


def random_gaussian_blur(key: jax.Array, image: jax.Array, *, low: float, high: float, p: float) -> jax.Array:
    """PIL's GaussianBlur(U(low, high)), with probability p."""
    u = _draws(key, 2, image.dtype)
    return jnp.where(u[1] < p, adjust_blur(image, _between(u[0], low, high), widest=high), image)


def adjust_flip(image: jax.Array) -> jax.Array:
    """Left and right exchanged: (H, W, C) -> (H, W, C)."""
    return image[:, ::-1]


def random_horizontal_flip(key: jax.Array, image: jax.Array, *, p: float) -> jax.Array:
    """torchvision's RandomHorizontalFlip(p)."""
    return jnp.where(_draws(key, 1, image.dtype)[0] < p, adjust_flip(image), image)


def inverse_affine(
    angle: jax.Array, shift: tuple[jax.Array, jax.Array], scale: jax.Array, shear: jax.Array, *, height: int, width: int
) -> tuple[jax.Array, ...]:
    """PIL's six numbers, from output (x, y) to input (x, y), of torchvision's affine.

    Scale, shear along x and clockwise rotation (degrees) about the centre, then a shift (x, y) in pixels.
    """
    turn, skew = jnp.deg2rad(angle), jnp.tan(jnp.deg2rad(shear))
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    a, b = (cos - sin * skew) / scale, (sin + cos * skew) / scale
    d, e = -sin / scale, cos / scale
    x, y = width / 2 + shift[0], height / 2 + shift[1]  # where the centre goes
    return a, b, width / 2 - a * x - b * y, d, e, height / 2 - d * x - e * y


def adjust_affine(image: jax.Array, matrix: tuple[jax.Array, ...]) -> jax.Array:
    """PIL's transform(AFFINE, BILINEAR): output (x, y) from input (ax + by + c, dx + ey + f), else 0.

    (H, W, C) -> (H, W, C). Pixel centres lie at halves; inside the image, edges are extended for interpolation.
    """
    height, width, channels = image.shape
    a, b, c, d, e, f = matrix
    x = jnp.arange(width, dtype=image.dtype)[None, :] + 0.5  # (1, W)
    y = jnp.arange(height, dtype=image.dtype)[:, None] + 0.5  # (H, 1)
    from_x, from_y = a * x + b * y + c, d * x + e * y + f  # (H, W)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    left, top = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
    across, down = (from_x - 0.5 - left)[:, :, None], (from_y - 0.5 - top)[:, :, None]
    columns = [jnp.clip(left.astype(jnp.int32) + i, 0, width - 1) for i in (0, 1)]
    rows = [jnp.clip(top.astype(jnp.int32) + i, 0, height - 1) for i in (0, 1)]
    pixels = image.reshape(height * width, channels)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return pixels.at[row * width + column].get(mode="promise_in_bounds")  # (H, W, C)

    upper = at(rows[0], columns[0]) * (1 - across) + at(rows[0], columns[1]) * across
    lower = at(rows[1], columns[0]) * (1 - across) + at(rows[1], columns[1]) * across
    return jnp.where(inside[:, :, None], upper * (1 - down) + lower * down, 0)


def random_affine(
    key: jax.Array,
    image: jax.Array,
    *,
    degrees: float,
    translate: float,
    scale: tuple[float, float],
    shear: float,
    p: float,
) -> jax.Array:
    """torchvision's RandomAffine, bilinear, filled with 0, with probability p; shifts are whole pixels, as there."""
    height, width, _ = image.shape
    u = _draws(key, 6, image.dtype)
    matrix = inverse_affine(
        _between(u[0], -degrees, degrees),
        (
            jnp.round(_between(u[1], -translate * width, translate * width)),
            jnp.round(_between(u[2], -translate * height, translate * height)),
        ),
        _between(u[3], scale[0], scale[1]),
        _between(u[4], -shear, shear),
        height=height,
        width=width,
    )
    return jnp.where(u[5] < p, adjust_affine(image, matrix), image)
