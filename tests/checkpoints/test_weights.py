"""What travels between programs: an architecture told by names and shapes, and nothing that is left over."""

import jax
import numpy as np
import pytest

from moco_jax.checkpoints import backbones, torch_names, weights
from moco_jax.config import BatchNorm, ConfigError, Model
from moco_jax.models import encoder as encoders
from moco_jax.models.resnet import ARCHS


def network(arch="resnet_tiny", stem="cifar", head="mlp", width=4, channels=3):
    """A tree of an encoder's shapes, every number another; variances above 0."""
    made = encoders.from_config(
        Model(arch, stem=stem, width=width, head=head, dim=5),
        BatchNorm(1),
        channels=channels,
        size=8,
        dtype=np.dtype("float32"),
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    made_up = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), shapes)
    return made_up | {"batch_stats": jax.tree.map(np.abs, made_up["batch_stats"])}


def tensors(**of):
    """Backbone and head of `network` under torch's names."""
    whole = torch_names.to_torch(network(**of))
    head = {n: whole.pop(n) for n in list(whole) if n.startswith("fc.")}
    return whole, head


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("arch", ARCHS)
def test_an_architecture_is_told_by_its_tensors(arch, stem):
    """Every ResNet that there is, with both stems."""
    model = Model(arch, stem=stem, width=6)
    assert weights.describe({n: np.zeros(shape) for n, shape in backbones.shapes(model, 3).items()}) == model


@pytest.mark.parametrize(("head", "channels"), [("mlp", 3), ("linear", 1), ("mlp", 13), (None, 3)])
def test_an_encoder_there_and_back(head, channels):
    """Its kind of head, dim and channels; the network in our layouts is the one that it came from."""
    there = network(head=head or "mlp", channels=channels)
    backbone, fc = tensors(head=head or "mlp", channels=channels)
    made = weights.encoder(backbone, fc if head else {})
    assert made.channels == channels
    if head:
        assert (made.model.head, made.model.dim) == (head, 5)
        jax.tree.map(np.testing.assert_array_equal, weights.network(made), there)
    else:
        assert weights.network(made).keys() == there.keys() and set(weights.network(made)["params"]) == {"backbone"}


def test_dtypes_are_kept_and_float16_is_widened():
    """float64 stays, so that nothing is rounded; float16 becomes float32, which holds each of its numbers."""
    backbone, head = tensors()
    double = weights.encoder({n: t.astype(np.float64) for n, t in backbone.items()}, head)
    assert double.backbone["conv1.weight"].dtype == np.float64 and double.head["fc.0.bias"].dtype == np.float32
    half = {n: t.astype(np.float16) for n, t in backbone.items()}
    made = weights.encoder(half, head)
    assert {t.dtype for t in made.backbone.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(made.backbone["bn1.bias"], half["bn1.bias"].astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.weight": None}, "no first convolution"),
        ({"conv1.weight": np.ones((4, 3))}, "no first convolution conv1.weight of 4 axes"),
        ({"conv1.weight": np.ones((4, 3, 5, 5))}, "5 pixels wide; the stems here have 7 or 3"),
        ({"conv1.weight": np.ones((4, 0, 3, 3))}, "conv1.weight is empty"),
        ({"bn1.weight": np.ones(4, np.int64)}, "bn1.weight is int64; weights are floating-point"),
        ({"bn1.weight": np.array([1, np.nan, 1, 1])}, "bn1.weight holds numbers that are not finite"),
        ({"bn1.running_var": np.array([1, -0.5, 1, 1])}, "bn1.running_var is a variance, and -0.5 is in it"),
        ({"bn1.weight": np.ones(5)}, r"bn1.weight is \(5,\), where resnet_tiny of width 4 has \(4,\)"),
        ({"bn1.weight": None}, "resnet_tiny of width 4 needs bn1.weight, which is not there"),
        ({"layer1.0.conv1.scale": np.ones(4)}, "no place for layer1.0.conv1.scale"),
        ({"layer1.7.conv1.weight": np.ones((4, 4, 3, 3))}, r"3 stages, \(8, 1, 1\) basic blocks, which is none of"),
        ({"fc.2.bias": None}, "its head is fc.0.bias, fc.0.weight, fc.2.weight, which is neither"),
        ({"fc.weight": np.ones((5, 16))}, "and 2 more, which is neither"),
        ({"fc.2.bias": np.ones(6)}, r"fc.2.weight is \(5, 16\), where .* has \(6, 16\)"),
        ({"fc.2.bias": np.float32(1)}, r"fc.2.weight is \(5, 16\), where .* has \(1, 16\)"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    """A tensor missing, left over, of another shape, kind or value."""
    backbone, head = tensors()
    for name, value in change.items():
        part = head if name.startswith("fc.") else backbone
        part.pop(name, None)
        part.update({} if value is None else {name: np.asarray(value)})
    with pytest.raises(ConfigError, match=message):
        weights.encoder(backbone, head)


def test_a_classifier_is_checked_against_its_encoder():
    """As wide as the features (those of the last layer), a bias for each class, a name for each or for none."""
    made = weights.encoder(*tensors())
    found = weights.classifier(np.ones((2, 16), np.float16), np.zeros(2, np.float32), made, ("a", "b"))
    assert found.names == ("a", "b") and found.weight.dtype == np.float32
    for weight, bias, names, message in (
        (np.ones((2, 15)), np.zeros(2), None, r"\(2, 15\) with bias \(2,\); on 16 features they are"),
        (np.ones((2, 16)), np.zeros(3), None, r"with bias \(3,\)"),
        (np.ones((2, 16, 1)), np.zeros(2), None, "the classifier is"),
        (np.ones((0, 16)), np.zeros(0), None, r"\(0, 16\) with bias \(0,\)"),
        (np.ones((2, 16)), np.zeros(2), ("a",), "there are 1 class names for 2 classes"),
        (np.ones((2, 16)), np.array([0, np.inf]), None, "fc.bias holds numbers that are not finite"),
    ):
        with pytest.raises(ConfigError, match=message):
            weights.classifier(weight, bias, made, names)
