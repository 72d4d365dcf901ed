"""Names and layouts of PyTorch's ResNets: there and back, and nothing left over on either side."""

import jax
import numpy as np
import pytest

from moco_jax.checkpoints.torch_names import from_torch, in_order, to_torch, torch_name
from moco_jax.config import BatchNorm, ConfigError, Model
from moco_jax.models import encoder
from tests.parity.torchvision_cpu import import_torchvision


def network(arch="resnet_tiny", head="mlp", stem="cifar"):
    """A tree of an encoder's shapes, every number another."""
    model = Model(arch, stem=stem, width=4, head=head, dim=5)
    made = encoder.from_config(model, BatchNorm(2), channels=3, size=8, dtype=np.dtype("float32"))
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("params/backbone/conv1/kernel", "conv1.weight"),
        ("params/backbone/layer1_0/bn2/scale", "layer1.0.bn2.weight"),
        ("params/backbone/layer3_22/conv3/kernel", "layer3.22.conv3.weight"),
        ("params/backbone/layer2_0/downsample_conv/kernel", "layer2.0.downsample.0.weight"),
        ("params/backbone/layer2_0/downsample_bn/bias", "layer2.0.downsample.1.bias"),
        ("batch_stats/backbone/layer2_0/downsample_bn/mean", "layer2.0.downsample.1.running_mean"),
        ("batch_stats/backbone/bn1/var", "bn1.running_var"),
        ("params/head/fc/bias", "fc.bias"),
        ("params/head/fc_2/kernel", "fc.2.weight"),
    ],
)
def test_names_are_torchvisions(path, name):
    """The spelling rule, for every kind of layer that there is."""
    assert torch_name(tuple(path.split("/"))) == name


@pytest.mark.parametrize(("arch", "head"), [("resnet_tiny", "mlp"), ("resnet18", "linear"), ("resnet50", "mlp")])
def test_there_and_back_is_the_same(arch, head):
    """Every leaf has a name of its own, and comes back as it was."""
    there = network(arch, head)
    tensors = to_torch(there)
    assert len(tensors) == len(jax.tree.leaves(there))
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors, there), there)


def test_layouts_are_torchs():
    """(out, in, h, w) and (out, in): entry by entry, for a kernel that is not square in its channels."""
    there = network()
    tensors = to_torch(there)
    kernel, weight = there["params"]["backbone"]["layer2_0"]["conv1"]["kernel"], tensors["layer2.0.conv1.weight"]
    assert kernel.shape == (3, 3, 4, 8) and weight.shape == (8, 4, 3, 3)
    assert weight[6, 3, 0, 2] == kernel[0, 2, 3, 6]
    dense, weight = there["params"]["head"]["fc_2"]["kernel"], tensors["fc.2.weight"]
    assert weight.shape == (5, 16) and weight[4, 7] == dense[7, 4]


def test_left_overs_are_errors():
    """A tensor too few, too many or of another shape is named; torch's count of batches alone is left out."""
    there = network()
    tensors = to_torch(there)
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors | {"bn1.num_batches_tracked": 7}, there), there)
    with pytest.raises(ConfigError, match="the encoder needs fc.0.bias, which is not there"):
        from_torch({n: t for n, t in tensors.items() if n != "fc.0.bias"}, there)
    with pytest.raises(ConfigError, match="no place for layer9.0.conv1.weight"):
        from_torch(tensors | {"layer9.0.conv1.weight": np.zeros((1, 1, 1, 1))}, there)
    with pytest.raises(ConfigError, match=r"conv1.weight is \(4, 1, 3, 3\), where the encoder has \(4, 3, 3, 3\)"):
        from_torch(tensors | {"conv1.weight": tensors["conv1.weight"][:, :1]}, there)
    with pytest.raises(ConfigError, match="and 1 more"):
        from_torch({n: t for n, t in tensors.items() if not n.startswith("fc.")}, there)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"params": {"backbone": {"Conv_0": {"kernel": np.zeros((1, 1, 1, 1))}}}}, "Conv_0/kernel has no name"),
        ({"params": {"backbone": {"conv1": {"embedding": np.zeros(1)}}}}, "conv1/embedding has no name"),
        ({"params": {"backbone": {"conv1": {"kernel": np.zeros((1, 1, 1))}}}}, "conv1.weight has 3 axes"),
        (
            {"params": {part: {"fc_0": {"bias": np.zeros(1)}} for part in ("head", "predictor")}},
            "would both be fc.0.bias",
        ),
    ],
)
def test_what_has_no_name_of_its_own_is_an_error(tree, message):
    """A layer that torchvision lacks, a layout that is unknown, and two leaves of one name: never a tensor lost."""
    with pytest.raises(ConfigError, match=message):
        to_torch(tree)


def test_order_is_that_of_torchs_modules():
    """Stem, stages with the shortcut last in its block, fc; of a batch norm scale, shift, statistics, count."""
    names = [
        *("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"),
        *("layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.conv2.weight", "layer1.0.bn2.bias"),
        *("layer1.0.downsample.0.weight", "layer1.0.downsample.1.weight", "layer1.0.downsample.1.running_var"),
        *("layer1.1.conv1.weight", "layer1.2.conv1.weight", "layer1.10.conv1.weight", "layer1.10.conv3.weight"),
        *("layer2.0.conv1.weight", "fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"),
    ]
    assert in_order(sorted(names)) == names and in_order(reversed(names)) == names
    assert in_order(["fc.bias", "fc.weight", "conv1.weight"]) == ["conv1.weight", "fc.weight", "fc.bias"]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_order_is_torchvisions(arch):
    """Of everything in its state_dict, and of the parameters, by which optimizers number them."""
    torchvision = import_torchvision()
    if torchvision is None:
        pytest.skip("torch or torchvision is not installed")
    module = getattr(torchvision.models, arch)()
    for names in (list(module.state_dict()), [name for name, _ in module.named_parameters()]):
        shuffled = list(np.random.default_rng(0).permutation(names))
        assert shuffled != names and in_order(map(str, shuffled)) == names
