"""What a run has to know of its images: kinds, ranges, sizes, and what is refused."""

import dataclasses

import numpy as np
import pytest

from moco_jax import config
from moco_jax.config import ConfigError
from moco_jax.data import measured, sources

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


class Named(sources.ArraySource):
    """Arrays that come from files."""

    def names(self):
        return [f"{i}.png" for i in range(len(self))]


def data(**changes):
    return dataclasses.replace(config.Data(), **changes)


def test_facts():
    """Records, channels, dtype, size and range are measured; sizes that differ give None; uint8 means 0..255."""
    same = sources.ArraySource(np.zeros((70, 4, 6, 1), np.uint8))
    assert measured.measure(same, data())[:6] == (70, 1, np.dtype("uint8"), (4, 6), 0.0, 255.0)
    assert measured.measure(sources.ArraySource([GRAY[..., None], GRAY.T[..., None]]), data()).shape is None
    deep = sources.ArraySource(np.full((2, 4, 6, 2), 50, np.uint16))
    two = data(mean=(0.5, 0.5), std=(0.2, 0.2), range=(10.0, 400.0))
    assert measured.measure(deep, two)[:6] == (2, 2, np.dtype("uint16"), (4, 6), 10.0, 400.0)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_images_need_a_range(dtype):
    """Without data.range the values of the sample, first and last image included, are named instead of guessed."""
    images = np.full((100, 2, 2, 1), 7, dtype)
    images[0], images[99] = 3, 4000
    with pytest.raises(ConfigError, match=rf"{np.dtype(dtype)} images need data\.range=.*64 images .* 3(\.0)? to 4000"):
        measured.measure(sources.ArraySource(images), data())


def test_facts_refuses_what_does_not_fit():
    """mean and std of another length, a std of 0, a falling range, a foreign object, no images, other arrays."""
    gray = sources.ArraySource(np.zeros((3, 4, 4, 1), np.uint8))
    cases = [
        (gray, data(mean=(0.5, 0.5, 0.5)), r"data\.mean has length 3 and images have 1 channels"),
        (gray, data(std=(0.5, 0.5)), r"data\.std has length 2"),
        (gray, data(std=(0.0,)), r"data\.std must be above 0"),
        (gray, data(range=(5.0, 5.0)), r"data\.range must rise"),
        (gray, data(channels=3), r"data\.channels is 3 and images of arrays have 1 channel"),
        ([GRAY], data(), "is no source"),
        (sources.ArraySource([]), data(), "holds no images"),
        (sources.ArraySource([GRAY]), data(), r"record 0 is uint8 \(5, 7\); an image is an array \(H, W, C\)"),
        (sources.ArraySource(np.zeros((3, 4, 4, 1))), data(), "record 0 is float64"),
        (
            sources.ArraySource([GRAY[..., None], GRAY[..., None] * np.uint16(2)]),
            data(),
            "is uint16 and record 0 uint8",
        ),
    ]
    for source, settings, message in cases:
        with pytest.raises(ConfigError, match=message):
            measured.measure(source, settings)


def test_a_range_beside_every_value_is_refused():
    """All white or all black images teach nothing: all numbers are named, at either end; one value inside will do."""
    images = np.full((3, 4, 4, 1), 300, np.uint16)
    images[1, 0, 0] = 900
    for limits in ((900.0, 2000.0), (0.0, 300.0)):
        with pytest.raises(
            ConfigError,
            match=rf"data.range \({limits[0]}, {limits[1]}\) leaves everything outside but .* hold 300 to 900",
        ):
            measured.measure(sources.ArraySource(images), data(range=limits))
    for limits in ((899.0, 2000.0), (0.0, 301.0)):
        assert measured.measure(sources.ArraySource(images), data(range=limits))[4:6] == limits


def test_a_background_on_an_end_of_the_range_does_not_speak_for_it():
    """Scans before zeros, or before the highest value, and the range of 8 bits; but what lies inside does."""
    images = np.zeros((2, 10, 10, 1), np.uint16)
    images[:, :3] = RNG.integers(1000, 5000, (2, 3, 10, 1))
    for scans, limits in ((images, (0.0, 255.0)), (65535 - images, (65280.0, 65535.0))):
        with pytest.raises(ConfigError, match=r"leaves everything outside but 0.0% of the values: 2 images measured"):
            measured.measure(sources.ArraySource(scans), data(range=limits))
    images[0, 0, 0] = 65535  # one hot pixel cut off, and much inside
    sparse = np.zeros((2, 40, 40, 1), np.uint16)
    sparse[0, 0, :5] = 100  # 0.2 % of all, none outside
    mask = np.where(images > 0, 65535, 0).astype(np.uint16)
    for scans, limits in ((images, (0.0, 5000.0)), (sparse, (0.0, 255.0)), (mask, (0.0, 65535.0))):
        assert measured.measure(sources.ArraySource(scans), data(range=limits))[4:6] == limits


def test_a_range_that_leaves_nearly_everything_outside_is_refused():
    """One value in a thousand inside is a mistake; one in fifty, as an object before a background, is none."""
    images = np.full((1, 100, 100, 1), 40000, np.uint16)
    images[0, :10, 0] = 50
    with pytest.raises(
        ConfigError, match=r"data.range \(0.0, 100.0\) leaves everything outside but 0.1% .* hold 50 to 40000"
    ):
        measured.measure(sources.ArraySource(images), data(range=(0.0, 100.0)))
    images[0, :2] = 50
    assert measured.measure(sources.ArraySource(images), data(range=(0.0, 100.0)))[4:6] == (0.0, 100.0)


def test_values_that_are_not_finite_are_met_before_training():
    """The record is named, with its file."""
    images = np.zeros((3, 4, 4, 1), np.float32)
    images[1, 2, 2] = np.nan
    with pytest.raises(ConfigError, match=r"record 1 \(1.png\) holds values that are not finite"):
        measured.measure(Named(images), data(range=(-1.0, 1.0)))


def test_small_images_are_warned_of():
    """How many of those looked at, and the smallest side; a side of exactly a view's size is none of them."""
    facts = measured.measure(Named([np.zeros((h, 9, 1), np.uint8) for h in (8, 5, 9, 12)]), data())
    (warning,) = measured.enlarged(facts, 8)
    assert warning.startswith("1 of the 4 images looked at are smaller than views.size 8 (the smallest has a side of 5")
    assert measured.enlarged(facts, 5) == []
