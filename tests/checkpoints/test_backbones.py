"""What travels is checked first: shapes of every architecture, and each way in which tensors can be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.checkpoints import weights
from moco_jax.checkpoints.backbones import check, feature_size, head_shapes, shapes, with_counts, without_counts
from moco_jax.checkpoints.torch_names import to_torch
from moco_jax.checkpoints.weights import describe
from moco_jax.config import ConfigError, Model
from moco_jax.models.resnet import ARCHS, build
from tests.checkpoints.portables import portable

DEEP = ("resnet101", "resnet152")  # seconds to trace


@pytest.mark.parametrize("arch", [pytest.param(a, marks=[pytest.mark.slow] * (a in DEEP)) for a in ARCHS])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_shapes_are_those_of_the_networks_here(arch, stem):
    """Names and shapes come from no second idea of the architecture: they are what Flax makes, in torch's layout."""
    net = build(arch, stem=stem, width=8, group_size=0, dtype=jnp.float32)
    made = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((2, 32, 32, 5)), train=True))
    made = {kind: {"backbone": tree} for kind, tree in made.items()}
    theirs = to_torch(jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), made))
    model = Model(arch=arch, stem=stem, width=8)
    assert shapes(model, 5) == {name: value.shape for name, value in theirs.items()}
    assert feature_size(model) == shapes(model, 5)[list(shapes(model, 5))[-1]][0]
    found = describe(theirs)
    assert (found.arch, found.stem, found.width) == (arch, stem, 8)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_shapes_of_heads_are_those_of_the_heads_here(head):
    """With a backbone of bottlenecks, so that its width is not the features'."""
    model = Model(arch="resnet50", stem="cifar", width=4, head=head, dim=5)
    theirs = weights.shapes(model, 3, with_head=True)
    named = to_torch(jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), theirs))
    assert head_shapes(model) == {n: t.shape for n, t in named.items() if n.startswith("fc.")}
    check(named, model, 3, with_head=True)
    with pytest.raises(ConfigError, match=r"has no place for fc\."):
        check(named, model, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layer2.0.bn1.running_var"), "^resnet18 of width 8 needs layer2.0.bn1.running_var"),
        (
            lambda t: t.update({"layer2.0.bn4.weight": np.zeros(1)}),
            "^resnet18 of width 8 has no place for layer2.0.bn4.weight",
        ),
        (lambda t: t.update({"bn1.bias": np.zeros(7)}), r"^bn1.bias is \(7,\), where resnet18 of width 8 has \(8,\)"),
        (lambda t: t.update({"conv1.weight": np.zeros((8, 1, 7, 7))}), r"conv1.weight is \(8, 1, 7, 7\)"),
    ],
)
def test_a_backbone_is_whole_or_named(change, message):
    """A tensor too few, too many or of another shape is refused by name."""
    encoder = portable(width=8)
    check(encoder.backbone, encoder.model, 3)
    change(encoder.backbone)
    with pytest.raises(ConfigError, match=message):
        check(encoder.backbone, encoder.model, 3)


def test_counts_of_batches_come_and_go():
    """One scalar of int64 beside every running mean, as torch has, and nothing else."""
    tensors = portable(width=8).backbone
    counted = with_counts(tensors)
    assert len(counted) - len(tensors) == sum(name.endswith("running_mean") for name in tensors) > 0
    count = counted["layer1.0.bn1.num_batches_tracked"]
    assert count.shape == () and count.dtype == np.int64
    assert without_counts(counted).keys() == tensors.keys()
