"""Sources: what facts measures, and every refusal with its numbers."""

import dataclasses

import numpy as np
import pytest

from moco_jax import config
from moco_jax.config import ConfigError
from moco_jax.data import sources

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


def data(**changes):
    return dataclasses.replace(config.Data(), **changes)


def test_facts():
    """Records, channels, dtype, size and range are measured; sizes that differ give None; uint8 means 0..255."""
    same = sources.ArraySource(np.zeros((70, 4, 6, 1), np.uint8))
    assert sources.facts(same, data())[:6] == (70, 1, np.dtype("uint8"), (4, 6), 0.0, 255.0)
    assert sources.facts(sources.ArraySource([GRAY[..., None], GRAY.T[..., None]]), data()).shape is None
    deep = sources.ArraySource(np.full((2, 4, 6, 2), 50, np.uint16))
    two = data(mean=(0.5, 0.5), std=(0.2, 0.2), range=(10.0, 400.0))
    assert sources.facts(deep, two)[:6] == (2, 2, np.dtype("uint16"), (4, 6), 10.0, 400.0)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_images_need_a_range(dtype):
    """Without data.range the values of the sample, first and last image included, are named instead of guessed."""
    images = np.full((100, 2, 2, 1), 7, dtype)
    images[0], images[99] = 3, 4000
    with pytest.raises(ConfigError, match=rf"{np.dtype(dtype)} images need data\.range=.*64 images .* 3(\.0)? to 4000"):
        sources.facts(sources.ArraySource(images), data())


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
            sources.facts(source, settings)


def test_array_source_labels():
    """Labels are one integer per image, or none."""
    source = sources.ArraySource(np.zeros((3, 4, 4, 1), np.uint8), [2, 0, 1])
    assert source.classes == 3 and source.labels().tolist() == [2, 0, 1] and isinstance(source, sources.Source)
    for labels in ([1, 2], [0.5, 1.0, 2.0]):
        with pytest.raises(ConfigError, match="3 images and labels"):
            sources.ArraySource(np.zeros((3, 4, 4, 1), np.uint8), labels)
