"""Crops: boxes follow torchvision's rule, pixels equal Pillow's, any channels and storage dtype."""

import math

import numpy as np
import pytest
from PIL import Image

from moco_jax.config import ConfigError
from moco_jax.data import crops

RATIO = (3 / 4, 4 / 3)
RNG = np.random.default_rng(0)
BILINEAR = Image.Resampling.BILINEAR


def boxes(count, height, width, scale, ratio=RATIO):
    return [crops.draw_box(words, height, width, scale, ratio) for (words,) in crops.words(0, 0, range(count), 1)]


def test_boxes_have_the_asked_area_and_aspect():
    """Area uniform in scale, aspect log-uniform in ratio, inside the image, to the rounding of whole pixels."""
    found = np.array(boxes(2000, 1000, 1200, (0.2, 0.5)), float)
    top, left, h, w = found.T
    area, aspect = h * w / 1.2e6, np.log(w / h)
    assert area.min() > 0.198 and area.max() < 0.502 and abs(aspect).max() < math.log(4 / 3) + 0.005
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 1000).all() and (left + w <= 1200).all()
    assert abs(area.mean() - 0.35) < 0.008 and abs(area.std() - 0.3 / math.sqrt(12)) < 0.005
    assert abs(aspect.mean()) < 0.015 and abs(aspect.std() - 2 * math.log(4 / 3) / math.sqrt(12)) < 0.01
    assert abs((top / (1000 - h)).mean() - 0.5) < 0.025 and abs((left / (1200 - w)).mean() - 0.5) < 0.025
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.08 and abs(np.corrcoef(top / (1000 - h), area)[0, 1]) < 0.08


def test_boxes_reach_both_ends():
    """A crop may touch every border: offsets are drawn from 0 to H - h inclusive."""
    found = np.array(boxes(300, 6, 6, (0.4, 0.8), (1.0, 1.0)))
    assert set(found[:, 0]) == set(found[:, 1]) == {0, 1, 2}
    high = [box.left for box in boxes(2000, 4, 40, (0.05, 0.12)) if box.height == 4]
    assert len(set(high)) > 20  # drawn, and not the central one that is taken where no try fits


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (10, 1000, crops.Box(0, (1000 - 13) // 2, 10, 13)),  # too wide: aspect 4/3
        (1000, 10, crops.Box((1000 - 13) // 2, 0, 13, 10)),  # too tall: aspect 3/4
    ],
)
def test_fallback_is_a_central_crop(height, width, expected):
    """Where ten tries do not fit, the largest centred box within the ratio is taken, as torchvision does."""
    assert set(boxes(20, height, width, (0.9, 1.0))) == {expected}


def test_fallback_keeps_an_image_within_the_ratio():
    """scale = 1 on an image that is not square but within the ratio: when no try fits, all of it."""
    found = boxes(300, 90, 100, (1.0, 1.0))
    assert found.count(crops.Box(0, 0, 90, 100)) > 250


def stream(seed, step, position, view):
    """The words of one view of one row."""
    return crops.words(seed, step, [position], view + 1)[0, view].tolist()


def test_streams_of_views_positions_steps_and_seeds_differ():
    """Each (seed, step, position, view) has words of its own, and the same ones whenever it is asked."""
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2**32 - 1, 10**6, 4095, 1)]
    streams = [stream(*key) for key in keys]
    assert len({word for stream in streams for word in stream}) == len(keys) * crops.WORDS
    assert streams == [stream(*key) for key in keys]


def test_boxes_are_what_checkpoints_count_on():
    """Known values: raw Philox words and the boxes made of them may not change under a run that is resumed."""
    words = crops.words(1, 2, [0, 3], 2)[1, 1]
    assert words[:2].tolist() == GOLDEN_WORDS
    assert crops.draw_box(words, 375, 500, (0.2, 1.0), RATIO) == GOLDEN_BOX


GOLDEN_WORDS = [5094452179571821345, 13531981678723196219]
GOLDEN_BOX = crops.Box(top=63, left=157, height=263, width=300)


@pytest.mark.parametrize("size", [4, 16, 40])
def test_8_bit_bands_equal_pillow(size):
    """Each of any number of 8-bit bands is cut and resized as Pillow's gray image, exactly; RGB: `tests/parity`."""
    image = RNG.integers(0, 256, (30, 41, 2), dtype=np.uint8)
    top, left, h, w = box = crops.Box(3, 5, 20, 27)
    found = crops.random_resized_crop(image, box, size)
    assert found.dtype == np.uint8
    for band in range(2):
        cut = Image.fromarray(image[..., band]).crop((left, top, left + w, top + h))
        np.testing.assert_array_equal(found[..., band], cut.resize((size, size), BILINEAR))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_any_channels_and_dtype(dtype, channels):
    """Each band is what Pillow's float resize gives, rounded to the storage dtype, bands apart from one another."""
    image = (RNG.random((20, 24, channels)) * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)
    found = crops.random_resized_crop(image, crops.Box(1, 2, 15, 18), 8)
    assert found.shape == (8, 8, channels) and found.dtype == dtype
    for c in range(channels):
        picture = Image.fromarray(image[1:16, 2:20, c].astype(np.float32))
        truth = np.asarray(picture.resize((8, 8), BILINEAR))
        fixed_point = 1 if dtype == np.uint8 else 0  # Pillow rounds these after each pass
        truth = truth if dtype == np.float32 else np.rint(truth)
        assert abs(found[..., c].astype(float) - truth).max() <= fixed_point


def test_crop_is_antialiased():
    """Reducing a checkerboard gives its mean, not its samples."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint16)[..., None]
    small = crops.random_resized_crop(board, crops.Box(0, 0, 64, 64), 8)[1:-1, 1:-1]
    assert abs(small.astype(int) - 127).max() <= 2


def test_values_are_rounded_and_clipped():
    """Extremes stay extremes: floats beside the largest integer do not wrap around."""
    floats = np.array([-0.4, -3.0, 1.5, 2.6, 65535.4, 70000.0], np.float32)
    assert crops._stored(floats, np.dtype("uint16")).tolist() == [0, 0, 2, 3, 65535, 65535]
    full = np.full((9, 7, 2), 65535, np.uint16)
    assert (crops.random_resized_crop(full, crops.Box(0, 0, 9, 7), 5) == 65535).all()


@pytest.mark.parametrize(("height", "width"), [(30, 41), (41, 30), (33, 33), (16, 50), (31, 47)])
@pytest.mark.parametrize(("resize", "size"), [(16, 16), (16, 13), (36, 32)])
def test_center_equals_torchvision_on_pillow(height, width, resize, size):
    """Resize of the shorter side, int() of the longer, then CenterCrop with round(), as in torchvision's source."""
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    short, long = min(height, width), max(height, width)
    new_long = int(resize * long / short)
    new_w, new_h = (resize, new_long) if width <= height else (new_long, resize)
    picture = Image.fromarray(image).resize((new_w, new_h), BILINEAR)
    top, left = round((new_h - size) / 2.0), round((new_w - size) / 2.0)
    truth = np.asarray(picture.crop((left, top, left + size, top + size)))
    np.testing.assert_array_equal(crops.center(image, resize=resize, size=size), truth)


def test_center_never_pads():
    """A crop larger than what it is cut from is an error, where torchvision would add black borders."""
    with pytest.raises(ConfigError, match="centre crop of 17 pixels does not fit a shorter side resized to 16"):
        crops.center(np.zeros((30, 30, 1), np.uint8), resize=16, size=17)
