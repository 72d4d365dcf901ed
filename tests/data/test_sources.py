"""Sources: what facts measures, and every refusal with its numbers."""

import dataclasses

import numpy as np
import pytest

from moco_jax import config
from moco_jax.config import ConfigError
from moco_jax.data import replacing, sources

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


def data(**changes):
    return dataclasses.replace(config.Data(), **changes)


def test_array_source_labels():
    """Labels are one integer per image, or none."""
    source = sources.ArraySource(np.zeros((3, 4, 4, 1), np.uint8), [2, 0, 1])
    assert source.classes == 3 and source.labels().tolist() == [2, 0, 1] and isinstance(source, sources.Source)
    for labels in ([1, 2], [0.5, 1.0, 2.0]):
        with pytest.raises(ConfigError, match="3 images and labels"):
            sources.ArraySource(np.zeros((3, 4, 4, 1), np.uint8), labels)


class Slow(sources.ArraySource):
    """Labels that are read record by record."""

    def labels(self):
        raise AssertionError("all labels were read")

    def labels_of(self, rows):
        return super().labels()[rows]


@pytest.mark.parametrize("kind", [sources.ArraySource, Slow])
def test_labels_of_some_records_read_no_others(kind):
    """Through a subset of it, a source whose bad files are replaced, and none where there are none."""
    source = kind(np.zeros((6, 4, 4, 1), np.uint8), [2, 0, 1, 1, 0, 2])
    rows = np.array([5, 1, 2])
    part = sources.Subset(replacing.Replacing(source, 0.1), rows)
    assert sources.labels_of(source, rows).tolist() == part.labels().tolist() == [2, 0, 1]
    assert sources.labels_of(sources.ArraySource(np.zeros((6, 4, 4, 1), np.uint8)), rows) is None


class Named(sources.ArraySource):
    """Arrays that come from files."""

    def names(self):
        return [f"{i}.png" for i in range(len(self))]


def test_a_named_record_is_named_in_errors():
    """Both files where two do not go together, and the one that is no image."""
    gray = GRAY[..., None]
    source = Named([gray, gray, np.repeat(gray, 3, 2), gray * np.uint16(2), GRAY])
    first = sources.read(source, 0)
    for index, message in (
        (2, r"record 2 \(2.png\) has 3 channels and record 0 \(0.png\) 1 channel"),
        (3, r"record 3 \(3.png\) is uint16 and record 0 \(0.png\) uint8"),
        (4, r"record 4 \(4.png\) is uint8 \(5, 7\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            sources.read(source, index, like=first)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error_wherever_they_are_read(value):
    """A kNN or a test accuracy of them would be a number like any other."""
    images = np.zeros((3, 4, 4, 1), np.float32)
    images[1, 2, 2] = value
    source = Named(images)
    assert sources.read(source, 2).shape == (4, 4, 1)
    with pytest.raises(ConfigError, match=r"record 1 \(1.png\) holds values that are not finite"):
        sources.read(source, 1)


def test_the_fingerprint_is_of_names_and_for_pairs_of_groups_and_labels():
    """Another name, order or, where pairs depend on them, group or label changes it; pixels do not; no names, none."""

    class Grouped(Named):
        def groups(self):
            return np.array(self.group)

    def source(labels=(0, 1), group=(0, 1), size=2):
        out = Grouped(np.zeros((2, size, size, 1), np.uint8), list(labels))
        out.group = group
        return out

    plain = sources.fingerprint(source(), pairs=False)
    assert plain == sources.fingerprint(source((1, 1), (0, 0), 3), pairs=False)
    with_pairs = {
        sources.fingerprint(s, pairs=True) for s in (source(), source((1, 1)), source(group=(0, 0)), source(size=3))
    }
    assert len(with_pairs) == 3 and plain not in with_pairs
    assert sources.fingerprint(Named(np.zeros((3, 2, 2, 1), np.uint8)), pairs=False) != plain
    turned = sources.Subset(source(), np.array([1, 0]))
    assert sources.fingerprint(turned, pairs=False) != plain
    assert sources.fingerprint(sources.ArraySource(np.zeros((2, 2, 2, 1), np.uint8)), pairs=True) is None


def test_groups_are_one_integer_per_image_or_none():
    """An array source takes them, a source without the method has none, and a source's own are checked."""
    images = np.zeros((3, 4, 4, 1), np.uint8)
    assert sources.groups_of(sources.ArraySource(images, groups=[7, 7, 0])).tolist() == [7, 7, 0]
    assert sources.groups_of(sources.ArraySource(images)) is None
    assert sources.groups_of([1, 2]) is None
    part = sources.Subset(sources.ArraySource(images, groups=[7, 7, 0]), np.array([2, 0]))
    assert sources.groups_of(part).tolist() == [0, 7]
    with pytest.raises(ConfigError, match=r"arrays: 3 images and groups int64 \(2,\); give ints"):
        sources.ArraySource(images, groups=[1, 2])
    wrong = sources.ArraySource(images)
    wrong.groups = lambda: ["a", "b", "c"]
    with pytest.raises(ConfigError, match="3 images and groups <U1"):
        sources.groups_of(wrong)


class Placed(sources.ArraySource):
    """Arrays that tell where they are from."""

    def __init__(self, whole, places):
        super().__init__(np.zeros((len(places), 2, 2, 1), np.uint8))
        self.where = sources.Origin(whole, places)

    def origin(self):
        return self.where


def test_shared_records_are_those_of_the_same_place():
    """Of the same whole alone; a subset keeps the places of its rows; names stand in; who cannot tell says None."""
    ours, theirs = Placed("x", [5, 6, 7, 8]), Placed("x", [8, 1, 6])
    assert sources.shared(ours, theirs).tolist() == [1, 3] and sources.shared(theirs, ours).tolist() == [0, 2]
    assert sources.shared(ours, Placed("y", [8, 1, 6])).tolist() == []
    part = sources.Subset(ours, np.array([3, 0]))
    assert part.origin() == ("x", [8, 5]) and sources.shared(part, theirs).tolist() == [0]
    silent = sources.ArraySource(np.zeros((3, 2, 2, 1), np.uint8))
    assert sources.shared(silent, ours) is None is sources.shared(ours, silent)
    assert sources.Subset(silent, np.array([0])).origin() is None
    silent.names = lambda: ["a", "b", "c"]
    assert sources.origin_of(silent).places == ["a", "b", "c"]
