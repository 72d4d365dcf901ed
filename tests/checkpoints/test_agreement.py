"""How far features agree: on fixed images, per image, relative to their length, and refused above the tolerance."""

import numpy as np
import pytest
from flax import traverse_util

from moco_jax.checkpoints import agreement, torch_names, weights
from moco_jax.checkpoints.weights import Pixels
from moco_jax.config import ConfigError
from tests.conversion import runs


def encoder(channels=3):
    """A tiny network of random numbers."""
    shapes = weights.shapes(runs.config(channels).model, channels, with_head=False)
    rng, tensors = np.random.default_rng(0), {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        tensors[path] = np.abs(rng.standard_normal(leaf.shape).astype(np.float32)) * 0.1 + 0.05
    return weights.encoder(torch_names.to_torch(traverse_util.unflatten_dict(tensors)), {})


def test_images_are_the_same_for_everybody():
    """Windows of two photographs: standardised, of the encoder's size, three channels in turn for any number."""
    x = agreement.images(3, None)
    assert x.shape == (8, 64, 64, 3) and x.dtype == np.float32
    means = (x * 0.25 + 0.5).mean((1, 2, 3))
    np.testing.assert_allclose(
        means, [0.53, 0.51, 0.59, 0.58, 0.26, 0.36, 0.38, 0.31], atol=0.01
    )  # decoders of JPEG may differ a little
    pixels = Pixels(24, 32, "uint8", (0.0, 255.0), (0.1, 0.2, 0.3, 0.4), (1.0, 2.0, 4.0, 8.0))
    many = agreement.images(4, pixels)
    assert many.shape == (8, 24, 24, 4)
    np.testing.assert_allclose(many[..., 3] * 8 + 0.4, many[..., 0] + 0.1, atol=1e-6)
    assert len({many[i].tobytes() for i in range(8)}) == 8


def test_the_furthest_image_counts():
    """Not the mean: one image that differs shows, as a share of its own length."""
    theirs = np.array([[3.0, 4.0], [30.0, 40.0]], np.float32)
    ours = theirs + np.array([[0.0, 0.05], [0.0, 0.05]], np.float32)
    assert agreement.furthest(ours, theirs) == pytest.approx(0.01, rel=1e-4)


@pytest.fixture(scope="module")
def compiled():
    """The encoder and our network of it, compiled once for this file."""
    one = encoder()
    return one, agreement._forward(one, 64)


@pytest.fixture
def ours(compiled, monkeypatch):
    """That network, in whose place `of` would compile the same one again."""
    monkeypatch.setattr(agreement, "_forward", lambda one, size: {(id(compiled[0]), 64): compiled[1]}[id(one), size])
    return compiled[1]


def test_our_features_meet_theirs_image_by_image(compiled, ours):
    """Theirs get (n, C, S, S), a few at a time, and in the same order."""
    seen = []

    def theirs(x):
        seen.append(x)
        return ours(x.transpose(0, 2, 3, 1))

    said = agreement.of(compiled[0], None, theirs, "Somebody")
    assert "JAX against Somebody: 0.0e+00 apart" in said and ours(agreement.images(3, None)).std(0).max() > 0
    np.testing.assert_array_equal(np.concatenate(seen).transpose(0, 2, 3, 1), agreement.images(3, None))


def test_an_encoder_of_gray_images_gets_gray_ones(monkeypatch):
    """As many channels as it takes, here by a network that only averages."""
    monkeypatch.setattr(agreement, "_forward", lambda one, size: lambda x: x.mean((1, 2)))
    seen = []
    agreement.of(encoder(1), None, lambda x: seen.append(x.shape) or x.mean((2, 3)), "Somebody")
    assert set(seen) == {(2, 1, 64, 64)}


@pytest.mark.parametrize("factor", [1 + 3e-5, np.nan])
def test_features_that_differ_are_refused(compiled, ours, factor):
    """Above a hundred-thousandth, and where there is no number at all."""
    with pytest.raises(ConfigError, match="differ from ours by .* of their length, more than 1e-05"):
        agreement.of(compiled[0], None, lambda x: ours(x.transpose(0, 2, 3, 1)) * np.float32(factor), "Somebody")


def test_features_without_numbers_on_both_sides_are_named(compiled, monkeypatch):
    """Weights that overflow do so by every program: no difference of programs."""
    monkeypatch.setattr(agreement, "_forward", lambda *_: lambda x: np.full((len(x), 4), np.inf, np.float32))
    with pytest.raises(ConfigError, match="features are not finite, by Somebody and by ours"):
        agreement.of(compiled[0], None, lambda x: np.full((len(x), 4), np.nan, np.float32), "Somebody")
