"""Operations against PIL, which torchvision uses, on a 32-pixel and a 96-pixel photo of slopes and noise.

PIL rounds to 8 bits after every operation and we never do, so means within 1/255 are agreement; each case states what
was measured.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from moco_jax.views import augment


def photo(size):
    """A smooth colourful picture with noise: (size, size, 3) uint8."""
    y, x = np.mgrid[0:size, 0:size] / size
    smooth = np.stack([0.5 + 0.5 * np.sin(6 * x + 2 * y), 0.5 + 0.5 * np.cos(5 * y), 0.3 + 0.6 * x * y], -1)
    noisy = smooth + 0.1 * np.random.default_rng(0).standard_normal(smooth.shape)
    return (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)


def floats(pixels):
    return jnp.asarray(pixels, jnp.float32) / 255


def pil_hue(picture, turns):
    """torchvision's adjust_hue on PIL: the hue byte moves by int(turns * 255) and wraps at 256."""
    h, s, v = picture.convert("HSV").split()
    moved = (np.asarray(h).astype(int) + int(turns * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), s, v)).convert("RGB")


def affine_matrix(angle, shift, scale, shear, width, height):
    """torchvision's affine written as matrices, inverted for PIL: shift . centre . rotate . scale . shear . -centre."""
    turn, skew = math.radians(angle), math.tan(math.radians(shear))
    cos, sin = math.cos(turn), math.sin(turn)
    centre = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1.0]])
    linear = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]) @ np.diag([scale, scale, 1.0])
    linear = linear @ np.array([[1, -skew, 0], [0, 1, 0], [0, 0, 1.0]])
    moved = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1.0]])
    return np.linalg.inv(moved @ centre @ linear @ np.linalg.inv(centre))[:2].ravel()


def pil_affine(picture, *arguments):
    matrix = affine_matrix(*arguments, *picture.size)
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def affine(image, angle, shift, scale, shear):
    numbers = [jnp.asarray(v, image.dtype) for v in (angle, *shift, scale, shear)]
    angle, x, y, scale, shear = numbers
    height, width, _ = image.shape
    return augment.adjust_affine(image, augment.inverse_affine(angle, (x, y), scale, shear, height=height, width=width))


def blur(image, sigma):
    return augment.adjust_blur(image, jnp.asarray(sigma, image.dtype), widest=2.0)


# name: (ours(image, value), PIL's(picture, value), values, largest mean difference in 1/255)
CASES = {
    "brightness": (
        augment.adjust_brightness,
        lambda p, v: ImageEnhance.Brightness(p).enhance(v),
        (0.0, 0.6, 1.0, 1.4),
        0.5,  # measured: 0.36
    ),
    "contrast": (
        augment.adjust_contrast,
        lambda p, v: ImageEnhance.Contrast(p).enhance(v),
        (0.0, 0.6, 1.0, 1.4),
        0.6,  # measured: 0.42
    ),
    "saturation": (
        augment.adjust_saturation,
        lambda p, v: ImageEnhance.Color(p).enhance(v),
        (0.0, 0.6, 1.0, 1.4),
        0.6,  # measured: 0.43
    ),
    "hue": (  # compared at the turn that PIL's whole bytes amount to
        lambda image, v: augment.adjust_hue(image, int(v * 255) / 256),
        pil_hue,
        (-0.37, -0.1, 0.0, 0.1, 0.4),
        0.9,  # measured: 0.60 with no turn at all, 0.68 to 0.81 with one
    ),
    "grayscale": (
        lambda image, v: augment.adjust_grayscale(image),
        lambda p, v: ImageOps.grayscale(p).convert("RGB"),
        (None,),
        0.3,  # measured: 0.25
    ),
    "blur": (
        blur,
        lambda p, v: p.filter(ImageFilter.GaussianBlur(v)),
        (0.1, 0.2, 0.3, 0.5, 1.0, 1.5, 2.0),
        0.99,  # measured: 0.30 to 0.55, and 0.85 to 0.93 at 0.2 and 0.3
    ),
    "flip": (
        lambda image, v: augment.adjust_flip(image),
        lambda p, v: ImageOps.mirror(p),
        (None,),
        1e-3,  # measured: 0
    ),
    "affine": (
        lambda image, v: affine(image, *v),
        lambda p, v: pil_affine(p, *v),
        ((0, (1, 2), 1.0, 0), (15, (2, -1), 0.9, 5), (-7, (0, 0), 1.1, -3), (40, (3, 3), 1.2, 20)),
        0.6,  # measured: 0.38 to 0.50, 0 for whole pixels
    ),
}
VALUES = [(name, value, 32) for name, case in CASES.items() for value in case[2]]
VALUES += [(name, case[2][-1], 96) for name, case in CASES.items()]


@pytest.mark.parametrize(("name", "value", "size"), VALUES)
def test_operations_equal_pil(name, value, size):
    """Every operation with fixed arguments is PIL's, to less than one level on average."""
    ours, theirs, _, limit = CASES[name]
    pixels = photo(size)
    out = ours(floats(pixels), value)
    difference = 255 * np.abs(np.asarray(out) - np.asarray(theirs(Image.fromarray(pixels), value), np.float32) / 255)
    assert out.dtype == jnp.float32
    assert difference.mean() < limit
    assert 0 <= float(out.min()) <= float(out.max()) <= 1 + 1e-6


@pytest.mark.parametrize("name", ["blur", "affine"])
def test_borders_equal_pil(name):
    """Blurred edges extend as PIL's do, and what an affine map brings from outside is 0 at the same pixels."""
    ours, theirs, values, _ = CASES[name]
    pixels = photo(32)
    expected = np.asarray(theirs(Image.fromarray(pixels), values[-1]), np.float32)
    difference = np.abs(255 * np.asarray(ours(floats(pixels), values[-1])) - expected)
    ring = np.ones((32, 32), bool)
    ring[3:-3, 3:-3] = False
    assert difference[ring].max() < 2  # measured: 1.2 and 1.0


@pytest.mark.parametrize("name", ["blur", "flip", "affine"])
def test_oblong_images_equal_pil(name):
    """Height and width are never taken for each other."""
    ours, theirs, values, limit = CASES[name]
    pixels = photo(40)[5:25]
    expected = np.asarray(theirs(Image.fromarray(pixels), values[-1]), np.float32)
    assert 255 * np.abs(np.asarray(ours(floats(pixels), values[-1])) - expected / 255).mean() < limit


@pytest.mark.parametrize("channels", [1, 13])
def test_contrast_of_bands_pivots_on_each_own_mean(channels):
    """There is no luma without red, green and blue: every band is stretched about its own mean, in 16-bit steps too."""
    image = np.random.default_rng(0).random((6, 7, channels)) * 0.01 + np.linspace(0.2, 0.7, channels)
    expected = 1.5 * image - 0.5 * image.mean((0, 1))
    np.testing.assert_allclose(
        augment.adjust_contrast(jnp.asarray(image, jnp.float32), 1.5), expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("places", list(itertools.permutations(range(4))))
def test_color_adjustments_come_in_the_order_asked_for(places):
    """All 24 orders, against the adjustments called one by one; strong ones, so that every order shows."""
    image, factors = floats(photo(32)), (1.4, 0.6, 1.4, 0.3)
    expected = image
    for kind in np.argsort(places):
        expected = augment.ADJUST[kind](expected, factors[kind])
    out = jax.jit(augment.adjust_color)(image, jnp.array(factors), jnp.array(places))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
MOVE = {"degrees": 15.0, "translate": 0.1, "scale": (0.9, 1.1), "shear": 5.0, "p": 0.5}
RANDOM = {
    "grayscale": functools.partial(augment.random_grayscale, p=0.2),
    "jitter": functools.partial(augment.random_color_jitter, **JITTER),
    "blur": functools.partial(augment.random_gaussian_blur, low=0.1, high=2.0, p=0.5),
    "flip": functools.partial(augment.random_horizontal_flip, p=0.3),
    "affine": functools.partial(augment.random_affine, **MOVE),
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
    ("name", "p"), [("grayscale", 0.2), ("jitter", 0.8), ("blur", 0.5), ("flip", 0.3), ("affine", 0.5)]
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
            augment.random_color_jitter, brightness=strength, contrast=0.0, saturation=0.0, hue=0.0, p=1.0
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

    def spy(image, factors, places, *, kinds):
        seen.append((jnp.stack(factors), places))
        return original(image, factors, places, kinds=kinds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "adjust_color", spy)

        def draws(key):
            augment.random_color_jitter(key, jnp.zeros((2, 2, 3)), **JITTER)
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
    blurred = jax.vmap(functools.partial(augment.random_gaussian_blur, low=0.5, high=2.0, p=1.0), (0, None))(
        keys, point
    )
    offsets = np.arange(25) - 12
    sigma = np.sqrt((np.asarray(blurred)[:, :, :, 0].sum(2) * offsets**2).sum(1))
    np.testing.assert_allclose(np.quantile(sigma, (0, 0.5, 1)), (0.5, 1.25, 2.0), atol=0.12)

    shift = functools.partial(augment.random_affine, degrees=0.0, translate=0.1, scale=(1.0, 1.0), shear=0.0, p=1.0)
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
