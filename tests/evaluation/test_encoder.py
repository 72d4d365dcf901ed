"""A frozen encoder: what it does to images, as a callable and in linen, and which it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moco_jax import parallel
from moco_jax.config import ConfigError
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation.features import extract
from tests import tiny
from tests.evaluation.begun import SMALL


def test_features_are_of_standardised_views_by_each_network(loaded, online, fresh):
    """Stored values 0..100 are mapped to 0..1, then mean and std; both networks are fed alike."""
    raw = np.random.default_rng(0).integers(0, 101, (8, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    x = (raw / 100.0 - np.array([0.5, 0.4, 0.3])) / np.array([0.25, 0.5, 1.0])
    for it, network in ((loaded.trained, online), (loaded.untrained, fresh)):
        network = parallel.host(network)
        wanted = SMALL.features(network.params, network.batch_stats, jnp.asarray(x, jnp.float32))
        got = it.features(raw)
        for name in ("backbone", "head"):
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, atol=1e-4)


def photographs():
    """Three images (H, W, 3) of other sizes, wide and high, of values 0..100."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 101, (*shape, 3), np.uint8) for shape in ((20, 31), (25, 18), (12, 12))]


def test_images_of_any_size_are_seen_as_in_evaluation(loaded):
    """Shorter side to eval.resize, centre cut out, one row for each image: the same as a source of them gives."""
    images, encoder = photographs(), loaded.trained
    got = encoder(images)
    wanted = extract(encoder, ArraySource(images), batch_size=8, workers=2)["backbone"]
    assert got.shape == (3, 4) and got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    one_size = np.stack([image[:12, :12] for image in images])
    np.testing.assert_allclose(encoder(one_size, batch_size=2), encoder(list(one_size)), rtol=0, atol=1e-6)
    assert np.abs(got[0] - encoder(one_size)[0]).max() > 1e-3  # the centre of the whole image is another view


def test_preprocessing_says_what_the_encoder_expects(loaded):
    """All of it comes from the run's config and from what its images held."""
    how = loaded.trained.preprocessing
    assert (how.size, how.resize, how.channels, how.dtype) == (tiny.SIZE, tiny.SIZE + 4, 3, "uint8")
    assert (how.range, how.mean, how.std) == ((0.0, 100.0), (0.5, 0.4, 0.3), (0.25, 0.5, 1.0))
    x = loaded.trained.preprocess(photographs())
    assert x.shape == (3, tiny.SIZE, tiny.SIZE, 3) and x.dtype == np.float32


def test_module_and_variables_are_the_encoder_in_linen(loaded):
    """Backbone and pooling of the trained network; evaluation mode unless `train` is said, and no head."""
    encoder, images = loaded.trained, photographs()
    x, wanted = encoder.preprocess(images), encoder(images)
    assert {c: list(tree) for c, tree in encoder.variables.items()} == {c: ["backbone"] for c in encoder.variables}
    np.testing.assert_allclose(encoder.module.apply(encoder.variables, x), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.module.apply(encoder.variables, x, train=False), wanted, rtol=0, atol=1e-6)
    assert np.abs(encoder.module.apply(loaded.untrained.variables, x) - wanted).max() > 1e-3


def test_the_encoder_becomes_an_nnx_module(loaded):
    """`nnx.bridge.ToNNX` holds the same parameters and statistics, gives the same features, and has gradients."""
    encoder, images = loaded.trained, photographs()
    x = encoder.preprocess(images)
    model = nnx.bridge.ToNNX(encoder.module, rngs=nnx.Rngs(0)).lazy_init(x)
    for values in encoder.variables.values():
        nnx.update(model, values)
    np.testing.assert_allclose(model(x), encoder(images), rtol=0, atol=1e-6)
    for kind, collection in ((nnx.Param, "params"), (nnx.BatchStat, "batch_stats")):
        held = jax.tree.leaves(nnx.state(model, kind))
        assert sum(a.size for a in held) == sum(a.size for a in jax.tree.leaves(encoder.variables[collection])) > 0
    gradient = jax.tree.leaves(nnx.grad(lambda m: jnp.sum(m(x) ** 2))(model))
    assert max(float(np.abs(g).max()) for g in gradient) > 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images to encode"),
        (np.zeros((8, 8, 3), np.uint8), r"image 0 is uint8 \(8, 3\); the encoder takes images \(H, W, 3\) of uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))], r"image 1 is float64 \(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"image 0 is uint8 \(8, 8, 1\)"),
        (["a.jpg"], r"image 0 is str \(\)"),
    ],
)
def test_images_of_another_kind_are_refused(loaded, images, message):
    """By number, with what they are and what is taken: neither 8-bit values nor gray ones are made up."""
    for use in (loaded.trained, loaded.trained.preprocess):
        with pytest.raises(ConfigError, match=message):
            use(images)
