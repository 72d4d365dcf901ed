"""What operations that change values do to one image (H, W, C), held as floats; torchvision's semantics on PIL images.

Those that move pixels are in `geometry.py`. Each has a deterministic twin `adjust_*(image, ...)` and a random wrapper
`random_*(key, image, *, ...)`, whose options are the fields of the operation in `recipes.py`. `whole` says how the
image is held. With it, as the whole levels 0..255 of 8 bits: every operation rounds, or drops fractions, where PIL
does, and its result is PIL's. Without it, as 0..1, and nothing is rounded. Draws are made in float32 whatever the
precision of the image. Choices are selections, never branches: under `vmap` both sides would be computed anyway.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax, random

WHITE = 255  # the largest level of 8 bits
REC601 = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # luma of red, green, blue: PIL's fixed point in convert("L")


def draws(key: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
    """(count,) uniform in [0, 1): all that one operation needs, in one call."""
    return random.uniform(key, (count,), jnp.float32).astype(dtype)


def between(u: jax.Array, low: float, high: float) -> jax.Array:
    """Uniform numbers moved from [0, 1) to [low, high)."""
    return low + (high - low) * u


def truncated(image: jax.Array, whole: bool) -> jax.Array:
    """Fractions dropped where levels are whole."""
    return jnp.floor(image) if whole else image


def rounded(image: jax.Array, whole: bool) -> jax.Array:
    """Rounded, halves upwards, where levels are whole."""
    return jnp.floor(image + 0.5) if whole else image


def stored(image: jax.Array, whole: bool) -> jax.Array:
    """The image as it lies in memory from one turn of a loop to the next: whole levels fit a byte."""
    return image.astype(jnp.uint8) if whole else image


def _blend(image: jax.Array, other: jax.Array | float, factor: jax.Array, whole: bool) -> jax.Array:
    """PIL's Image.blend(other, image, factor), clipped to black and white."""
    # Clipped to black before the sum, so that product and sum are not fused into an operation that rounds otherwise.
    lit = other + jnp.maximum(factor * (image - other), -other)
    return truncated(jnp.minimum(lit, WHITE if whole else 1), whole)


def luma(image: jax.Array, *, whole: bool) -> jax.Array:
    """Rec. 601 gray of three channels: (H, W, 3) -> (H, W, 1)."""
    r, g, b = (image[:, :, c : c + 1] * weight for c, weight in enumerate(REC601))
    return rounded(r + g + b, whole)


def adjust_grayscale(image: jax.Array, *, whole: bool) -> jax.Array:
    """Luma in every channel: (H, W, 3) -> (H, W, 3)."""
    return jnp.broadcast_to(luma(image, whole=whole), image.shape)


def random_grayscale(key: jax.Array, image: jax.Array, *, p: float, whole: bool) -> jax.Array:
    """torchvision's RandomGrayscale(p)."""
    return jnp.where(draws(key, 1, image.dtype)[0] < p, adjust_grayscale(image, whole=whole), image)


def adjust_brightness(image: jax.Array, factor: jax.Array, *, whole: bool) -> jax.Array:
    """All values times `factor`, clipped: (H, W, C) -> (H, W, C)."""
    return _blend(image, 0, factor, whole)


def adjust_contrast(image: jax.Array, factor: jax.Array, *, whole: bool) -> jax.Array:
    """Away from the mean luma (`factor` above 1) or towards it, clipped: (H, W, C) -> (H, W, C).

    As PIL, three channels pivot on one mean, of the luma. Any other number of channels has no luma: each pivots on its
    own mean, as PIL's gray images do.
    """
    gray = luma(image, whole=whole) if image.shape[2] == 3 else image
    return _blend(image, rounded(jnp.mean(gray, axis=(0, 1), keepdims=True), whole), factor, whole)


def adjust_saturation(image: jax.Array, factor: jax.Array, *, whole: bool) -> jax.Array:
    """Away from the pixel's luma (`factor` above 1) or towards it, clipped: (H, W, 3) -> (H, W, 3)."""
    return _blend(image, luma(image, whole=whole), factor, whole)


def adjust_hue(image: jax.Array, turns: jax.Array, *, whole: bool) -> jax.Array:
    """Hue moved by `turns` of the colour circle, through HSV: (H, W, 3) -> (H, W, 3).

    PIL's HSV has 8 bits as well: with `whole`, hue and saturation are cut to bytes, and the hue moves by whole ones.
    """
    r, g, b = image[:, :, 0], image[:, :, 1], image[:, :, 2]
    value = jnp.maximum(jnp.maximum(r, g), b)  # (H, W)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)  # (H, W)
    sixths = jnp.where(value == r, g - b, jnp.where(value == g, 2 * chroma + b - r, 4 * chroma + r - g))
    hue = sixths / jnp.where(chroma > 0, chroma, 1)  # of a turn, -1..5; gray has none, and no chroma to show it
    if whole:
        # Bytes cut off fractions with divisors up to 510, so EXACT lifts only what is whole but for float arithmetic.
        circle = jnp.floor(jnp.where(hue < 0, hue + 6, hue) * (WHITE / 6) + EXACT) + jnp.trunc(turns * WHITE)
        hue = _remainder(circle, 256) * (6 / WHITE)
        chroma = value * (jnp.floor(chroma * WHITE / jnp.where(value > 0, value, 1) + EXACT) / WHITE)
    else:
        hue = hue + 6 * turns

    def channel(offset: int) -> jax.Array:
        k = _remainder(offset + hue, 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return rounded(jnp.stack([channel(5), channel(3), channel(1)], axis=2), whole)


EXACT = 2.0**-11


def _remainder(x: jax.Array, period: int) -> jax.Array:
    """x modulo period; several times faster than XLA's on a CPU."""
    return x - period * jnp.floor(x / period)


ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def adjust_color(
    image: jax.Array,
    factors: Sequence[jax.Array],
    places: jax.Array,
    *,
    whole: bool,
    kinds: Sequence[int] = (0, 1, 2, 3),
) -> jax.Array:
    """ADJUST[k](image, factor) for k in `kinds` and the factor beside it, in any order: (H, W, C) -> (H, W, C).

    `places` (len(kinds),) is a permutation: when each of them comes, 0 first.
    """

    dtype = image.dtype

    def adjust_one(place: jax.Array, held: jax.Array) -> jax.Array:
        image = before = held.astype(dtype)
        for i, kind in enumerate(kinds):
            image = jnp.where(places[i] == place, ADJUST[kind](before, factors[i], whole=whole), image)
        return stored(image, whole)

    # A loop of 4 halves the time to compile, and its steps cannot be fused into one that recomputes the earlier ones.
    return lax.fori_loop(0, len(kinds), adjust_one, stored(image, whole)).astype(dtype)


def random_color_jitter(
    key: jax.Array,
    image: jax.Array,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    p: float,
    whole: bool,
) -> jax.Array:
    """torchvision's ColorJitter in random order, with probability p; a strength of 0 leaves its adjustment out."""
    u = draws(key, 9, image.dtype)
    strengths = (brightness, contrast, saturation, hue)
    kinds = [k for k in range(4) if strengths[k] > 0]
    lows, highs = [max(0.0, 1 - x) for x in strengths[:3]] + [-hue], [1 + x for x in strengths[:3]] + [hue]
    factors = [between(u[k], lows[k], highs[k]) for k in kinds]
    ranked = u[4 : 4 + len(kinds)]
    places = jnp.sum(ranked[None, :] < ranked[:, None], axis=1)  # (len(kinds),), a random permutation
    return jnp.where(u[8] < p, adjust_color(image, factors, places, whole=whole, kinds=kinds), image)


def adjust_blur(image: jax.Array, sigma: jax.Array, *, widest: float, whole: bool) -> jax.Array:
    """PIL's GaussianBlur(sigma): three box blurs along each axis, edges extended: (H, W, C) -> (H, W, C).

    `widest` is the largest sigma there can be, in pixels: it fixes the size of the box. A sampled Gaussian would be
    3/255 off at a sigma of 0.3, where it is not as wide as sigma.
    """
    weights = _box(sigma.astype(image.dtype), math.floor((math.sqrt(4 * widest**2 + 1) - 1) / 2) + 1, whole)

    def one_pass(_: int, lines: jax.Array) -> jax.Array:
        out = _weighted(lines.astype(weights[0].dtype), weights)
        return stored((out + FIXED // 2) // FIXED if whole else out, whole)

    blurred = stored(image, whole)
    for _ in range(2):
        blurred = blurred.swapaxes(0, 1)  # along each row first, then along each column
        # A loop, since unrolled passes are fused into one that computes the earlier ones again for every tap.
        lines = lax.fori_loop(0, 3, one_pass, blurred.reshape(blurred.shape[0], -1))
        blurred = lines.reshape(blurred.shape)
    return blurred.astype(image.dtype)


FIXED = 2**24  # PIL's fixed point for weights


def _box(sigma: jax.Array, reach: int, whole: bool) -> list[jax.Array]:
    """Weights of pixels 0, 1, .. reach away, each (): a box of variance sigma**2 / 3, whose ends take a fraction.

    They sum to 1, or with `whole` to FIXED, as uint32.
    """
    variance = sigma**2 / 3
    full = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)  # taps of full weight on each side
    part = (2 * full + 1) * (full * (full + 1) - 3 * variance) / (6 * (variance - (full + 1) ** 2))
    total = FIXED if whole else 1
    each = total / (2 * (full + part) + 1)
    each = jnp.floor(each) if whole else each
    end = (total - (2 * full + 1) * each) / 2
    weights = [jnp.where(tap <= full, each, jnp.where(tap <= full + 1, end, 0)) for tap in range(reach + 1)]
    return [weight.astype(jnp.uint32) for weight in weights] if whole else weights


def _weighted(lines: jax.Array, weights: list[jax.Array]) -> jax.Array:
    """Every line and its neighbours, weighted by distance: (L, M) -> (L, M)."""
    count, reach = len(lines), len(weights) - 1
    wide = jnp.concatenate([lines[:1]] * reach + [lines] + [lines[-1:]] * reach)  # (L + 2 reach, M)
    out = lines * weights[0]
    for tap in range(1, reach + 1):
        out = out + (wide[reach - tap :][:count] + wide[reach + tap :][:count]) * weights[tap]
    return out


def random_gaussian_blur(
    key: jax.Array, image: jax.Array, *, low: float, high: float, p: float, whole: bool
) -> jax.Array:
    """PIL's GaussianBlur(U(low, high)), with probability p."""
    u = draws(key, 2, image.dtype)
    sigma = jnp.where(u[1] < p, between(u[0], low, high), 0)  # a box of one pixel: the very same image
    return adjust_blur(image, sigma, widest=high, whole=whole)


def adjust_solarize(image: jax.Array, *, whole: bool) -> jax.Array:
    """PIL's ImageOps.solarize(128): values of 128/255 and above inverted: (H, W, C) -> (H, W, C)."""
    white = WHITE if whole else 1
    return jnp.where(image < white * (128 / WHITE), image, white - image)


def random_solarize(key: jax.Array, image: jax.Array, *, p: float, whole: bool) -> jax.Array:
    """The same, with probability p."""
    return jnp.where(draws(key, 1, image.dtype)[0] < p, adjust_solarize(image, whole=whole), image)


def adjust_gain(image: jax.Array, gains: jax.Array, *, whole: bool) -> jax.Array:
    """Each channel times its own of `gains` (C,), clipped: (H, W, C) -> (H, W, C). With equal gains: brightness."""
    return _blend(image, 0, gains[None, None, :], whole)


def random_band_gain(key: jax.Array, image: jax.Array, *, strength: float, p: float, whole: bool) -> jax.Array:
    """With probability p, each channel times its own U(max(0, 1 - strength), 1 + strength)."""
    u = draws(key, image.shape[2] + 1, image.dtype)  # (C + 1,)
    gains = between(u[1:], max(0.0, 1 - strength), 1 + strength)
    return jnp.where(u[0] < p, adjust_gain(image, gains, whole=whole), image)


def adjust_drop(image: jax.Array, dropped: jax.Array, *, whole: bool) -> jax.Array:
    """Channels where `dropped` (C,) is true hold their own mean everywhere: (H, W, C) -> (H, W, C).

    Their mean and not 0: black becomes an extreme value by the normalisation with mean and deviation (Sentinel-2's band
    7: -1.9), which would move the batch statistics of every image in the group; the mean is nothing out of the ordinary
    and needs no statistics of the data. What a band shows is gone either way.
    """
    mean = rounded(jnp.mean(image, axis=(0, 1), keepdims=True), whole)  # (1, 1, C)
    return jnp.where(dropped[None, None, :], mean, image)


def random_channel_drop(key: jax.Array, image: jax.Array, *, share: float, p: float, whole: bool) -> jax.Array:
    """With probability p, 1 to share * C channels (at least 1, never all) lose their picture; all sets are as likely.

    The number is uniform, then the set of that size. One channel is left alone.
    """
    channels = image.shape[2]
    most = min(max(1, math.floor(share * channels)), channels - 1)
    u = draws(key, channels + 2, image.dtype)
    count = jnp.minimum(1 + jnp.floor(u[1] * most), most)
    dropped = (jnp.argsort(u[2:]) < count) & (u[0] < p)  # (C,); argsort is a random permutation, ties or not
    return adjust_drop(image, dropped, whole=whole)
