"""Features of a whole data set: every image once, in order; and a frozen encoder that stays frozen."""

import jax
import numpy as np
import pytest

from moco_jax import parallel
from moco_jax.config import ConfigError
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation.features import extract
from moco_jax.state import Network
from tests import tiny

ENCODER = tiny.small_encoder(tiny.config(), 3)


def mean_encoder(size, channels):
    """An encoder whose features are the mean value of a view, and that counts the rows it saw."""
    seen = []

    def features(x):
        seen.append(len(x))
        return {"backbone": x.reshape(len(x), -1).mean(1, keepdims=True), "head": x[:, 0, 0, :1]}

    return frozen.FrozenEncoder(features, None, "mean", tiny.preprocessing(size, channels), None), seen


def test_every_image_once_in_order_and_no_padding_comes_out():
    """11 images in batches of 4: three calls of one size, eleven rows."""
    images = np.broadcast_to(np.arange(11, dtype=np.uint8)[:, None, None, None], (11, 8, 8, 1)).copy()
    encoder, seen = mean_encoder(8, 1)
    out = extract(encoder, ArraySource(images), batch_size=4, workers=1)
    np.testing.assert_array_equal(out["backbone"][:, 0], np.arange(11))
    assert seen == [4, 4, 4] and out["head"].shape == (11, 1)


def test_evaluation_views_are_resized_and_centred():
    """Shorter side to `resize`, then the centre: a bright frame outside the centre does not come in."""
    images = np.full((1, 16, 16, 1), 255, np.uint8)
    images[:, 4:12, 4:12] = 0
    encoder, _ = mean_encoder(8, 1)
    encoder = encoder._replace(preprocessing=tiny.preprocessing(8, 1, resize=16))
    assert extract(encoder, ArraySource(images), batch_size=1, workers=1)["backbone"][0, 0] == 0


def test_a_frozen_encoder_uses_running_statistics_and_keeps_its_digest():
    """The features of an image do not depend on what stands beside it; the digest sees a change of one leaf."""
    network = parallel.born(lambda: Network(**ENCODER.init(jax.random.key(0))))
    how = tiny.preprocessing(8, 3)
    it = frozen.freeze(frozen.forward_of(ENCODER, how), network, ENCODER, how)
    rows = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    before = frozen.digest(it.network)
    whole = it.features(rows)["backbone"]
    np.testing.assert_allclose(it.features(np.roll(rows, 3, axis=0))["backbone"], np.roll(whole, 3, axis=0), atol=1e-6)
    np.testing.assert_allclose(it.features(rows[:3])["backbone"], whole[:3], atol=1e-6)
    assert frozen.digest(it.network) == before == frozen.digest(network)
    moved = network.replace(batch_stats=jax.tree.map(lambda a: a + 1, network.batch_stats))
    assert frozen.digest(moved) != before


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 1), np.uint8), np.zeros((8, 8, 3), np.uint8), [[1]]],
)
def test_views_of_another_kind_are_refused(wrong):
    """Values that mean something else would give features without an error."""
    it = frozen.freeze(lambda network, x: {}, {}, ENCODER, tiny.preprocessing(8, 3))
    with pytest.raises(ConfigError, match=r"takes uint8 views \(n, H, W, 3\) as stored, not"):
        it.features(wrong)
