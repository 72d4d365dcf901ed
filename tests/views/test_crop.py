"""Crops on the device against Pillow's crop and resize, and boxes against torchvision's rules.

8-bit crops are compared in `tests/parity/test_augmentation.py`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from moco_jax.views import crop
from moco_jax.views.crop import Box
from tests import tiny

RATIO = (3 / 4, 4 / 3)
# (source height, source width, (top, left, height, width), size): shrinking, growing, mixed, whole, one pixel, identity
CASES = [
    (40, 50, (3, 7, 31, 40), 16),
    (8, 8, (0, 0, 8, 8), 16),
    (8, 8, (1, 0, 6, 8), 16),
    (24, 60, (4, 5, 9, 50), 16),
    (96, 96, (0, 0, 96, 96), 16),
    (12, 12, (11, 5, 1, 1), 4),
    (20, 20, (2, 3, 16, 16), 16),
]


def on_device(image, box, size):
    return np.asarray(jax.jit(crop.crop_and_resize, static_argnums=2)(image, Box(*map(jnp.int32, box)), size))


def with_pillow(image, box, size):
    top, left, height, width = box
    cut = image.crop((left, top, left + width, top + height))
    return np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 1e-6), (np.uint16, 0.51)])
@pytest.mark.parametrize(("height", "width", "box", "size"), CASES)
def test_other_storage_equals_pillow_band_by_band(height, width, box, size, dtype, atol):
    """Floats to rounding and 16 bits to the nearest level, against Pillow's float mode, with two bands."""
    values = np.random.default_rng(1).random((height, width, 2))
    image = (values * (65535 if dtype == np.uint16 else 1)).astype(dtype)
    out = on_device(image, box, size)
    assert out.dtype == dtype
    for band in range(2):
        expected = with_pillow(Image.fromarray(image[:, :, band].astype(np.float32)), box, size)
        np.testing.assert_allclose(out[:, :, band].astype(np.float64), expected, rtol=0, atol=atol)


def test_pixels_outside_the_box_have_no_say():
    """As Pillow's resize of a cropped image, and unlike `resize(box=)`, the filter ends at the crop's border."""
    image = np.zeros((16, 16, 1), np.float32)
    other = np.ones((16, 16, 1), np.float32)
    other[4:12, 3:13] = 0
    for size in (4, 24):
        np.testing.assert_array_equal(on_device(other, (4, 3, 8, 10), size), on_device(image, (4, 3, 8, 10), size))


def test_extreme_values_do_not_wrap():
    """All-white stays white in 8 and 16 bits: rounding never passes the largest value."""
    for dtype in (np.uint8, np.uint16):
        image = np.full((9, 9, 1), np.iinfo(dtype).max, dtype)
        assert (on_device(image, (1, 2, 7, 5), 11) == np.iinfo(dtype).max).all()


def boxes(count, height, width, scale, ratio=RATIO):
    """`count` boxes as four arrays: top, left, height, width."""
    draw = functools.partial(crop.draw_box, height=height, width=width, scale=scale, ratio=ratio)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), count)))


def test_boxes_have_the_published_distribution():
    """Area uniform and aspect log-uniform where neither is cut off by the image, corners uniform over what is free."""
    box = boxes(20_000, 400, 400, (0.1, 0.5))
    area = box.height * box.width / 400**2
    aspect = np.log(box.width / box.height)
    for values, low, high in ((area, 0.1, 0.5), (aspect, math.log(3 / 4), math.log(4 / 3))):
        assert low - 0.02 < values.min() < low + 0.02
        assert high - 0.02 < values.max() < high + 0.02
        quartiles = np.quantile((values - low) / (high - low), (0.25, 0.5, 0.75))
        np.testing.assert_allclose(quartiles, (0.25, 0.5, 0.75), atol=0.02)
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.03
    for start, length in ((box.top, box.height), (box.left, box.width)):
        place = (start + 0.5) / (400 - length + 1)
        assert place.min() > 0
        assert place.max() < 1
        np.testing.assert_allclose(np.quantile(place, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.02)


def test_boxes_of_small_images_stay_inside_and_reach_every_corner():
    """At 8 pixels every box is whole pixels inside the image, and the last row and column are reached."""
    box = boxes(2_000, 8, 8, (0.08, 1.0))
    assert min(box.height.min(), box.width.min()) >= 1
    assert min(box.top.min(), box.left.min()) == 0
    for start, length in ((box.top, box.height), (box.left, box.width)):
        small = length < 8
        assert (start + length).max() == 8
        assert set(start[small & (length == 4)]) == set(range(5))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(4, 400, (0, 197, 4, 5)), (400, 4, (197, 0, 5, 4)), (30, 32, (0, 0, 30, 32))],
)
def test_the_central_box_is_the_last_resort(height, width, expected):
    """Where no try can fit, torchvision's centred box with its aspect within the ratio; else the whole image.

    An area above that of the image never fits, so that here every draw ends in the fallback.
    """
    assert crop._central_box(height, width, RATIO) == expected
    box = boxes(8, height, width, (1.5, 2.0))
    assert {tuple(int(side) for side in b) for b in zip(*box, strict=True)} == {expected}


def test_the_first_of_ten_tries_that_fits_is_taken():
    """torchvision's loop, word for word, on the same random numbers, for an image in which most tries fail."""
    height, width, scale, failed = 8, 24, (0.2, 1.0), []
    box = boxes(500, height, width, scale)
    for row, key in enumerate(jax.random.split(jax.random.key(0), 500)):
        u = np.asarray(jax.random.uniform(key, (22,), jnp.float32), np.float64)
        got = tuple(int(side[row]) for side in box)
        for attempt in range(10):
            area = height * width * (scale[0] + (scale[1] - scale[0]) * u[attempt])
            aspect = math.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * u[10 + attempt])
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                assert got == (int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w)
                break
        else:
            assert got == crop._central_box(height, width, RATIO)
        failed.append(attempt)
    assert set(failed) == set(range(10))


def test_a_crop_is_its_box_resized_and_double_precision_draws_the_same(float64):
    """The random crop is `draw_box` then `crop_and_resize`; float64 data changes no box."""
    image = np.random.default_rng(2).random((12, 14, 2))
    key = jax.random.key(5)
    how = {"scale": (0.2, 1.0), "ratio": RATIO}
    box = jax.jit(lambda key: crop.draw_box(key, 12, 14, **how))(key)
    out = jax.jit(lambda key, x: crop.random_resized_crop(key, x, size=6, **how))(key, image)
    assert out.dtype == jnp.float64
    for band in range(2):
        picture = Image.fromarray(image[:, :, band].astype(np.float32))
        np.testing.assert_allclose(out[:, :, band], with_pillow(picture, tuple(map(int, box)), 6), atol=1e-6)
    jax.config.update("jax_enable_x64", False)
    single = jax.jit(lambda key: crop.draw_box(key, 12, 14, **how))(key)
    assert tuple(map(int, single)) == tuple(map(int, box))


def test_a_thousand_boxes_equal_pillow():
    """Enlarged and shrunk, up to 40 times as wide as high: never more than one level of 255 apart, 0.06 on average."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(90) * 2.0, np.arange(120))[..., None] * [0.5, 0.7, 1.0]
    image = np.clip(ramp + rng.normal(0, 40, (90, 120, 3)), 0, 255).astype(np.uint8)
    heights, widths = (np.exp(rng.uniform(np.log(3), np.log(side), 1000)).astype(int) for side in image.shape[:2])
    tops, lefts = rng.integers(0, 91 - heights), rng.integers(0, 121 - widths)
    boxes = np.stack([tops, lefts, heights, widths], 1)
    cut = jax.vmap(lambda b: crop.crop_and_resize(image, crop.Box(*b), 24))
    found = np.asarray(jax.jit(cut, compiler_options=tiny.OPTIMISED)(jnp.asarray(boxes, jnp.int32)))
    wanted = np.stack([with_pillow(Image.fromarray(image), box, 24) for box in boxes.tolist()])
    gap = np.abs(found.astype(int) - wanted)
    assert gap.max() <= 1 and gap.mean() < 0.1, (gap.max(), gap.mean())
    assert (widths / heights).max() > 20 and (widths / heights).min() < 1 / 15 and (widths < 24).any()


def test_levels_between_the_two_passes_are_bytes():
    """A quarter of the memory of floats; other storage stays as it is computed."""

    def between(dtype):
        f = jax.jit(functools.partial(crop.crop_and_resize, size=5))
        text = f.lower(jnp.zeros((8, 8, 3), dtype), Box(*map(jnp.int32, (0, 0, 8, 8)))).as_text()
        return text.split("dot_general")[1].count("xui8>")

    assert between(jnp.uint8) > 0 and between(jnp.uint16) == 0
