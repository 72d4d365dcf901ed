"""What a report shows is what the run saw: view pairs of its own batch, neighbours by hand, a map."""

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import views
from moco_jax.config import Config, ConfigError, Data, Eval, Views
from moco_jax.core.randomness import AUGMENT, CROP, key
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import samples
from moco_jax.evaluation.encoder import FrozenEncoder, Values
from tests import tiny

VALUES = Values(2, "uint16", 0.0, 60000.0)
DATA = Data(range=(0.0, 60000.0), mean=(0.4, 0.6), std=(0.2, 0.3))
CONFIG = Config(batch_size=16, seed=5, data=DATA, views=Views("bands", 8), eval=Eval(resize=8))


def made():
    return views.make(tiny.LIGHT, size=8, low=0.0, high=60000.0, mean=DATA.mean, std=DATA.std, dtype=jnp.float32)


def test_view_pairs_are_those_of_the_step():
    """Two bands of 16 bits: rows 0 to 3 of the whole batch of 16 as the step makes them at step 9, back in 0..1."""
    stored = tiny.images(2, np.uint16)
    ids = np.random.default_rng(0).integers(0, len(stored), (16, 2)).astype(np.int32)
    positions, v = np.arange(16), made()
    raw = v.raw({"ids": ids}, {"images": stored}, positions, key(5, 9, CROP))
    whole = [np.asarray(v.augment(x, positions, key(5, 9, AUGMENT), i)) for i, x in enumerate(raw)]
    wanted = np.stack(whole, 1)[:4] * np.float32(DATA.std) + np.float32(DATA.mean)
    got = samples.view_pairs(v, CONFIG, ArraySource(stored), {"ids": ids[:4]}, 9)
    assert got.shape == (4, 2, 8, 8, 2) and got.dtype == np.float32
    # Measured: 2.3e-5, where a crop rounds the other way under jit, by one stored level of 1/60000.
    np.testing.assert_allclose(got, np.clip(wanted, 0, 1), rtol=0, atol=4e-5)
    assert got.min() >= 0 and got.max() <= 1 and len(np.unique(got)) > 500  # 16 bits, not 256 levels a channel
    streamed = {"ids": ids[:4], "raw": tuple(np.asarray(x[:4]) for x in raw)}
    np.testing.assert_allclose(samples.view_pairs(v, CONFIG, ArraySource(stored), streamed, 9), got, rtol=0, atol=4e-5)


def encoder(calls):
    """Features of a view: the mean of each channel, and its square; calls are counted by rows."""

    def features(x):
        calls.append(len(x))
        mean = x.mean((1, 2)).astype(np.float32)
        return {"backbone": np.concatenate([mean, mean**2], 1), "head": mean}

    return FrozenEncoder(features, None, "means", tiny.preprocessing(8, 2), None)


def test_images_are_encoded_in_equal_calls_and_spread_over_the_source():
    """40 of 64, ends included, in calls of 32: features in order, padding cut off, marks of the same images."""
    stored, calls = tiny.images(2, np.uint16), []
    source = ArraySource(stored, np.arange(64), name="all")
    found = samples.encode(encoder(calls), CONFIG, source, 40)
    assert calls == [32, 32] and found.features.shape == (40, 4) and found.views.shape == (40, 8, 8, 2)
    assert found.marks[0] == 0 and found.marks[-1] == 63 and len(set(found.marks.tolist())) == 40
    np.testing.assert_allclose(found.features[:, :2], found.views.mean((1, 2)), rtol=1e-5)
    assert found.marked_by == "label" and found.name == "all"
    assert len(samples.encode(encoder([]), CONFIG, source, 1000).views) == 64


def test_groups_colour_where_there_are_no_labels():
    """Else nothing does."""
    source = ArraySource(tiny.images(2, np.uint16))
    assert samples.encode(encoder([]), CONFIG, source, 8).marks is None
    source.groups = lambda: np.arange(64) // 8
    found = samples.encode(encoder([]), CONFIG, source, 8)
    assert found.marks.tolist() == list(range(8)) and found.marked_by == "group"


def points(*angles, marks=None, name="bank"):
    """Images whose features are directions in the plane, in degrees, of any length; image i holds 1000 i."""
    turned = np.radians(angles)
    features = np.float32(np.stack([np.cos(turned), np.sin(turned)], 1) * np.arange(1, len(angles) + 1)[:, None])
    stored = np.broadcast_to(np.arange(len(angles))[:, None, None, None] * 1000, (len(angles), 4, 4, 2))
    return samples.Encoded(stored.astype(np.uint16), features, marks, "label" if marks is not None else "", name)


def test_neighbours_are_the_nearest_by_cosine():
    """By hand: queries at 10 and 80 degrees; lengths do not matter, values are mapped by the range."""
    bank = points(0, 30, 70, 85, marks=np.array([1, 2, 3, 4]))
    found = samples.neighbours(
        points(10, 80, marks=np.array([2, 4]), name="held out"), bank, VALUES, count=2, nearest=2
    )
    assert (found.found[:, :, 0, 0, 0] * 60).round().astype(int).tolist() == [[0, 1], [3, 2]]
    np.testing.assert_allclose(found.similarity, np.cos(np.radians([[10, 20], [5, 10]])), atol=1e-6)
    assert found.labels.tolist() == [[2, 1, 2], [4, 4, 3]] and found.where == "of held out, among bank"


def test_without_held_out_images_an_image_is_not_its_own_neighbour():
    """Queries are images of the bank; more neighbours than there are others is fewer, and none an error."""
    found = samples.neighbours(None, points(0, 30, 85), VALUES, count=3, nearest=9)
    assert (found.found[:, :, 0, 0, 0] * 60).round().astype(int).tolist() == [[1, 2], [0, 2], [1, 0]]
    assert found.labels is None and found.where == "of bank, among its other images"
    with pytest.raises(ConfigError, match="bank holds 1 images: no neighbours to show"):
        samples.neighbours(None, points(0), VALUES, count=1, nearest=3)


@pytest.mark.parametrize("how", samples.MAPS)
def test_a_map_keeps_what_is_near_near(how):
    """Two clusters of directions, of any lengths, stay apart: no point is nearer to the other's centre."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.float32([[9, 0, 1, 0], [0, 9, 0, 1]]), 20, axis=0)
    features = (centres + rng.normal(0, 0.3, (40, 4))) * rng.uniform(1, 9, (40, 1))
    encoded = samples.Encoded(np.zeros((40, 1, 1, 1), np.uint8), features.astype(np.float32), None, "", "x")
    at = samples.plane(encoded, how)
    middle = at.reshape(2, 20, 2).mean(1)
    assert at.shape == (40, 2)
    assert (np.linalg.norm(at[:, None] - middle, axis=2).argmin(1) == np.repeat([0, 1], 20)).all()


def test_what_makes_no_map_is_said():
    """An unknown way, and too few images."""
    with pytest.raises(ConfigError, match="--map 'umap' is unknown"):
        samples.plane(points(0, 1, 2, 3), "umap")
    with pytest.raises(ConfigError, match="bank: 3 images make no map"):
        samples.plane(points(0, 1, 2), "pca")
