"""Operations: nothing is rounded but on whole levels, and draws have the published distributions.

That 8-bit operations are torchvision's is argued in `tests/parity/test_augmentation.py`; here they are the yardstick of
the unrounded ones.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from moco_jax.views import augment, geometry
from tests import tiny


def photo(size):
    """A smooth colourful picture with noise: (size, size, 3) uint8."""
    y, x = np.mgrid[0:size, 0:size] / size
    smooth = np.stack([0.5 + 0.5 * np.sin(6 * x + 2 * y), 0.5 + 0.5 * np.cos(5 * y), 0.3 + 0.6 * x * y], -1)
    noisy = smooth + 0.1 * np.random.default_rng(0).standard_normal(smooth.shape)
    return (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)


def floats(pixels):
    return jnp.asarray(pixels, jnp.float32) / 255


def affine(image, angle, *, whole):
    height, width, _ = image.shape
    matrix = geometry.inverse_affine(angle, (2.0, -1.0), 0.9, 5.0, height=height, width=width)
    return geometry.adjust_affine(image, matrix, whole=whole)


def gain(image, factor, *, whole):
    return augment.adjust_gain(image, jnp.stack([factor] * 3), whole=whole)


def drop(image, above_0, *, whole):
    return augment.adjust_drop(image, jnp.stack([above_0 > 0] * 3), whole=whole)


# name: (operation, argument, largest mean difference from whole levels in 1/255)
OPERATIONS = {
    "brightness": (augment.adjust_brightness, 0.6, 0.5),  # measured: 0.40, of truncation
    "contrast": (augment.adjust_contrast, 0.6, 0.6),  # 0.43
    "saturation": (augment.adjust_saturation, 0.6, 0.6),  # 0.44
    "hue": (augment.adjust_hue, 64 / 255, 1.2),  # 0.98, of bytes in HSV and the circle of 256
    "grayscale": (lambda image, _, *, whole: augment.adjust_grayscale(image, whole=whole), 0.0, 0.3),  # 0.25
    "blur": (functools.partial(augment.adjust_blur, widest=2.0), 1.3, 0.6),  # 0.42
    "gain": (gain, 0.6, 0.5),  # 0.36
    "drop": (drop, 1.0, 0.5),  # 0.21
    "affine": (affine, 15.0, 0.55),  # 0.50
}


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_only_whole_levels_are_rounded(name):
    """Whole levels stay whole; other values come near them, and a picture 1,000 times darker is as finely graded."""
    operation, value, limit = OPERATIONS[name]
    operation = jax.jit(operation, static_argnames="whole")
    pixels, value = photo(24), jnp.float32(value)
    whole = operation(jnp.asarray(pixels, jnp.float32), value, whole=True)
    np.testing.assert_array_equal(whole, np.round(whole))
    free = operation(floats(pixels), value, whole=False)
    assert np.abs(255 * np.asarray(free) - whole).mean() < limit
    dark = operation(floats(pixels) / 1000, value, whole=False)
    np.testing.assert_allclose(1000 * dark, free, rtol=0, atol=1e-5)
    assert 0 <= float(free.min()) <= float(free.max()) <= 1 + 1e-6


def test_bytes_of_hue_and_saturation_are_cut_exactly():
    """In integers, without a rounding, on all kinds of colours: what divides without a rest keeps its last level."""
    image = np.random.default_rng(3).integers(0, 256, (300, 300, 3))
    r, g, b = np.moveaxis(image, 2, 0)
    value = image.max(2)
    chroma = value - image.min(2)
    sixths = np.select([value == r, value == g], [g - b, 2 * chroma + b - r], 4 * chroma + r - g) % (
        6 * chroma + 6 * (chroma == 0)
    )
    hue = (85 * sixths // np.maximum(2 * chroma, 1) + 17) % 256
    saturation = 255 * chroma // np.maximum(value, 1)
    k = (2 * hue[:, :, None] + 85 * np.array([5, 3, 1])) % 510  # of 510 for a turn
    taken = saturation[:, :, None] * np.clip(np.minimum(k, 340 - k), 0, 85)
    expected = (2 * value[:, :, None] * (255 * 85 - taken) + 255 * 85) // (2 * 255 * 85)
    cut = jax.jit(functools.partial(augment.adjust_hue, whole=True), compiler_options=tiny.OPTIMISED)
    np.testing.assert_array_equal(cut(jnp.asarray(image, jnp.float32), 17.5 / 255), expected)


def test_oblong_images_equal_pil():
    """Height and width are never taken for each other by what moves pixels."""
    pixels = photo(40)[5:25]
    picture, image = Image.fromarray(pixels), jnp.asarray(pixels, jnp.float32)
    blurred = augment.adjust_blur(image, jnp.float32(1.3), widest=2.0, whole=True)
    np.testing.assert_array_equal(blurred, picture.filter(ImageFilter.GaussianBlur(1.3)))
    numbers = geometry.inverse_affine(15.0, (2.0, -1.0), 0.9, 5.0, height=20, width=40)
    turned = picture.transform(
        picture.size, Image.Transform.AFFINE, [float(n) for n in numbers], Image.Resampling.BILINEAR
    )
    ours = jax.jit(affine, static_argnames="whole")(image, 15.0, whole=True)
    assert np.abs(ours - np.asarray(turned, np.float32)).mean() < 0.01  # measured: 0


@pytest.mark.parametrize("channels", [1, 13])
def test_contrast_of_bands_pivots_on_each_own_mean(channels):
    """There is no luma without red, green and blue: every band is stretched about its own mean."""
    image = np.random.default_rng(0).random((6, 7, channels)) * 0.01 + np.linspace(0.2, 0.7, channels)
    expected = 1.5 * image - 0.5 * image.mean((0, 1))
    np.testing.assert_allclose(
        augment.adjust_contrast(jnp.asarray(image, jnp.float32), 1.5, whole=False), expected, rtol=0, atol=1e-6
    )
    levels = np.floor(image * 255)
    mean = np.floor(levels.mean((0, 1)) + 0.5)
    np.testing.assert_array_equal(
        augment.adjust_contrast(jnp.asarray(levels, jnp.float32), 1.5, whole=True),
        np.floor(mean + 1.5 * (levels - mean)),
    )


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_gain_and_drop_are_each_channels_own(channels):
    """Against numpy: a gain multiplies its channel and clips it at white, a lost channel is its own mean everywhere."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (6, 7, channels)).astype(np.float32)
    gains, lost = rng.uniform(0.2, 1.8, channels).astype(np.float32), np.arange(channels) % 3 == 0
    for image, whole, white, held in ((levels, True, 255, np.floor), (levels / 512, False, 1, np.asarray)):
        gained = augment.adjust_gain(jnp.asarray(image), jnp.asarray(gains), whole=whole)
        np.testing.assert_allclose(gained, held(np.minimum(image * gains, white)), rtol=0, atol=1e-6)
        dropped = augment.adjust_drop(jnp.asarray(image), jnp.asarray(lost), whole=whole)
        mean = image.astype(np.float64).mean((0, 1))
        expected = np.where(lost, np.floor(mean + 0.5) if whole else mean, image)
        np.testing.assert_allclose(dropped, expected, rtol=0, atol=1e-6)


def test_gain_draws_a_factor_for_each_channel():
    """Independent of one another, U(max(0, 1 - x), 1 + x)."""
    for strength in (0.2, 1.5):
        random_gain = functools.partial(augment.random_band_gain, strength=strength, p=1.0, whole=False)
        keys = jax.random.split(jax.random.key(7), 2000)
        factors = np.asarray(jax.jit(jax.vmap(random_gain, (0, None)))(keys, jnp.full((1, 1, 4), 0.25)))[:, 0, 0] / 0.25
        low, high = max(0.0, 1 - strength), 1 + strength
        quantiles = np.quantile((factors - low) / (high - low), (0.0, 0.25, 0.5, 0.75, 1.0), axis=0)
        np.testing.assert_allclose(quantiles, np.tile([[0], [0.25], [0.5], [0.75], [1]], 4), atol=0.04)  # 0.029
        assert np.abs(np.corrcoef(factors.T) - np.eye(4)).max() < 0.09  # four standard errors


@pytest.mark.parametrize(
    ("channels", "share", "most"), [(1, 0.9, 0), (2, 0.25, 1), (2, 0.9, 1), (3, 0.9, 2), (13, 0.25, 3), (13, 0.99, 12)]
)
def test_channels_are_lost_in_every_number_and_place_but_never_all(channels, share, most):
    """1 to share * C of them (at least 1, never C), each number alike, each channel alike; one alone is kept."""
    random_drop = functools.partial(augment.random_channel_drop, share=share, p=1.0, whole=False)
    image = jnp.stack([jnp.zeros(channels), jnp.ones(channels)])[:, None]  # (2, 1, C): a lost channel has its mean, 0.5
    out = jax.jit(jax.vmap(random_drop, (0, None)))(jax.random.split(jax.random.key(8), 3000), image)
    lost = np.asarray(out)[:, 0, 0] == 0.5
    numbers = np.bincount(lost.sum(1), minlength=most + 1)
    if most == 0:
        assert numbers.tolist() == [3000]
        return
    assert len(numbers) == most + 1 and numbers[0] == 0
    assert np.abs(numbers[1:] / 3000 - 1 / most).max() < 4 * math.sqrt(1 / 4 / 3000)
    assert np.abs(lost.mean(0) - (most + 1) / 2 / channels).max() < 4 * math.sqrt(1 / 4 / 3000)


def test_a_vertical_flip_exchanges_top_and_bottom():
    """Of an image that is not square, and nothing else."""
    image = jnp.arange(24.0).reshape(2, 4, 3)
    turned = geometry.random_vertical_flip(jax.random.key(0), image, p=1.0, whole=False)
    np.testing.assert_array_equal(turned, np.flipud(image))


JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
MOVE = {"degrees": 15.0, "translate": 0.1, "scale": (0.9, 1.1), "shear": 5.0, "p": 0.5}
RANDOM = {
    "grayscale": functools.partial(augment.random_grayscale, p=0.2, whole=False),
    "jitter": functools.partial(augment.random_color_jitter, **JITTER, whole=False),
    "blur": functools.partial(augment.random_gaussian_blur, low=0.1, high=2.0, p=0.5, whole=False),
    "solarize": functools.partial(augment.random_solarize, p=0.2, whole=False),
    "gain": functools.partial(augment.random_band_gain, strength=0.2, p=0.6, whole=False),
    "drop": functools.partial(augment.random_channel_drop, share=0.7, p=0.4, whole=False),
    "flip": functools.partial(geometry.random_horizontal_flip, p=0.3, whole=False),
    "upturn": functools.partial(geometry.random_vertical_flip, p=0.7, whole=False),
    "affine": functools.partial(geometry.random_affine, **MOVE, whole=False),
}


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_random_operations_under_jit_and_vmap(name):
    """Mapped over a batch, compiled or not, an operation gives each image what it gives it alone."""
    keys = jax.random.split(jax.random.key(1), 3)
    images = jnp.stack([floats(photo(16)), floats(photo(16))[::-1], floats(photo(16))[:, ::-1]])
    mapped = jax.jit(jax.vmap(RANDOM[name]))(keys, images)
    alone = jnp.stack([RANDOM[name](keys[0], images[0]), *(jax.jit(RANDOM[name])(keys[i], images[i]) for i in (1, 2))])
    np.testing.assert_allclose(mapped, alone, rtol=0, atol=1e-5)
    assert mapped.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "p"),
    [
        ("grayscale", 0.2),
        ("jitter", 0.8),
        ("blur", 0.5),
        ("solarize", 0.2),
        ("gain", 0.6),
        ("drop", 0.4),
        ("flip", 0.3),
        ("upturn", 0.7),
        ("affine", 0.5),
    ],
)
def test_random_operations_happen_with_their_probability(name, p):
    """Among 2,000 keys the image changes in a share p of them (four standard errors), and else not by a bit."""
    image = floats(photo(8))
    out = jax.jit(jax.vmap(RANDOM[name], (0, None)))(jax.random.split(jax.random.key(2), 2000), image)
    changed = np.asarray(jnp.any(out != image[None], axis=(1, 2, 3)))
    assert abs(changed.mean() - p) < 4 * math.sqrt(p * (1 - p) / 2000)


def test_jitter_factors_are_multiplicative_and_uniform():
    """Brightness alone on mid-gray shows the factor: U(1 - x, 1 + x), and U(0, 1 + x) for strengths above 1."""
    image = jnp.full((2, 2, 1), 0.25)
    for strength in (0.4, 1.5):
        jitter = functools.partial(
            augment.random_color_jitter, brightness=strength, contrast=0.0, saturation=0.0, hue=0.0, p=1.0, whole=False
        )
        keys = jax.random.split(jax.random.key(3), 2000)
        factors = np.asarray(jax.jit(jax.vmap(jitter, (0, None)))(keys, image))[:, 0, 0, 0] / 0.25
        low, high = max(0.0, 1 - strength), 1 + strength
        quantiles = np.quantile((factors - low) / (high - low), (0.0, 0.25, 0.5, 0.75, 1.0))
        np.testing.assert_allclose(quantiles, (0, 0.25, 0.5, 0.75, 1), atol=0.04)


def test_jitter_draws_every_order_and_independent_factors():
    """The random jitter is `adjust_color` with four uniform factors, turns of both signs, and all orders alike."""
    seen = []
    original = augment.adjust_color

    def spy(image, factors, places, *, whole, kinds):
        seen.append((jnp.stack(factors), places))
        return original(image, factors, places, whole=whole, kinds=kinds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "adjust_color", spy)

        def draws(key):
            augment.random_color_jitter(key, jnp.zeros((2, 2, 3)), **JITTER, whole=False)
            return seen.pop()

        factors, places = jax.jit(jax.vmap(draws))(jax.random.split(jax.random.key(4), 2400))
    _, counts = np.unique(np.asarray(places), axis=0, return_counts=True)
    assert len(counts) == 24
    assert 60 < counts.min() <= counts.max() < 145  # 100 expected, four standard errors
    factors = np.asarray(factors)
    np.testing.assert_allclose(factors.min(0), (0.6, 0.6, 0.6, -0.1), atol=0.01)
    np.testing.assert_allclose(factors.max(0), (1.4, 1.4, 1.4, 0.1), atol=0.01)
    assert np.abs(np.corrcoef(np.concatenate([factors, places], 1).T)[:4] - np.eye(4, 8)).max() < 0.09


def test_blur_and_affine_draws_span_their_ranges():
    """A blurred point's variance is sigma squared, over U(low, high); an affine map moves a point within its limits."""
    point = jnp.zeros((25, 25, 1)).at[12, 12].set(1.0)
    keys = jax.random.split(jax.random.key(5), 400)
    blurred = jax.vmap(
        functools.partial(augment.random_gaussian_blur, low=0.5, high=2.0, p=1.0, whole=False), (0, None)
    )(keys, point)
    offsets = np.arange(25) - 12
    sigma = np.sqrt((np.asarray(blurred)[:, :, :, 0].sum(2) * offsets**2).sum(1))
    np.testing.assert_allclose(np.quantile(sigma, (0, 0.5, 1)), (0.5, 1.25, 2.0), atol=0.12)

    shift = functools.partial(
        geometry.random_affine, degrees=0.0, translate=0.1, scale=(1.0, 1.0), shear=0.0, p=1.0, whole=True
    )
    moved = np.asarray(jax.jit(jax.vmap(shift, (0, None)))(keys, point))[:, :, :, 0]
    assert np.array_equal(np.unique(moved.round(4)), [0, 1])  # whole pixels: a point stays a point
    rows, columns = np.nonzero(moved.round(4))[1:]
    assert set(rows - 12) == set(columns - 12) == {-2, -1, 0, 1, 2}  # 0.1 of 25 pixels, rounded half to even
    assert len(rows) == 400


def test_double_precision_sees_the_same_draws(float64):
    """In float64 nothing falls back to float32, and the picture is the float32 one to rounding."""
    pixels = photo(8)
    for name, operation in RANDOM.items():
        wide, narrow = (
            jax.jit(operation)(jax.random.key(6), jnp.asarray(pixels, dtype) / 255)
            for dtype in (jnp.float64, jnp.float32)
        )
        assert (wide.dtype, narrow.dtype) == (jnp.float64, jnp.float32), name
        program = str(jax.make_jaxpr(operation)(jax.random.key(6), jnp.zeros((8, 8, 3), jnp.float64)))
        assert "f64[8,8" in program, name
        assert "f32[8,8" not in program, name
        np.testing.assert_allclose(wide, narrow, rtol=0, atol=1e-5)
