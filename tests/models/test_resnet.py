"""The ResNets against torchvision's published sizes, torch's arithmetic in plain numpy, and torch's initialisation."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.cli import xla
from moco_jax.config import ConfigError
from moco_jax.models import resnet
from moco_jax.models.resnet import ARCHS, STEMS, Arch

# torchvision's published totals, less the classifier's 1000 D + 1000.
PUBLISHED = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000,
}


def net(arch="resnet_tiny", *, stem="imagenet", width=4, group=1, dtype=jnp.float32):
    return resnet.build(arch, stem=stem, width=width, group_size=group, dtype=dtype)


def shapes(model, *shape):
    """Variables and stage maps of a model as shapes, without compiling anything."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    return variables, jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, x)


def path_names(tree):
    return {"/".join(str(k.key) for k in path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.mark.parametrize("arch", sorted(set(ARCHS) - {"resnet_tiny"}))
def test_parameter_counts_are_published(arch):
    """Every published architecture of the table has exactly torchvision's parameters, the classifier aside."""
    variables, _ = shapes(net(arch, width=64), 1, 32, 32, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PUBLISHED[arch]


def torchvision_names(stages, convolutions, first_shortcut):
    """torchvision's state_dict names of a ResNet without fc, in our spelling: layer1.0.downsample.0 and so on."""
    units = [("conv1", "bn1")]
    for i, blocks in enumerate(stages, 1):
        for j in range(blocks):
            block = f"layer{i}_{j}"
            units += [(f"{block}/conv{c}", f"{block}/bn{c}") for c in range(1, convolutions + 1)]
            if j == 0 and (i > 1 or first_shortcut):
                units.append((f"{block}/downsample_conv", f"{block}/downsample_bn"))
    params = {f"{conv}/kernel" for conv, _ in units} | {f"{bn}/{leaf}" for _, bn in units for leaf in ("scale", "bias")}
    return params, {f"{bn}/{leaf}" for _, bn in units for leaf in ("mean", "var")}


@pytest.mark.parametrize(
    ("arch", "stages", "convolutions", "first_shortcut"),
    [("resnet18", (2, 2, 2, 2), 2, False), ("resnet50", (3, 4, 6, 3), 3, True), ("resnet_tiny", (1, 1, 1), 2, False)],
)
def test_names_map_onto_torchvision(arch, stages, convolutions, first_shortcut):
    """A foreign checkpoint needs a spelling rule, not a table per architecture: layers stand where torch has them."""
    variables, _ = shapes(net(arch), 1, 32, 32, 3)
    params, stats = torchvision_names(stages, convolutions, first_shortcut)
    assert path_names(variables["params"]) == params
    assert path_names(variables["batch_stats"]) == stats


@pytest.mark.parametrize(
    ("arch", "stem", "size", "sides", "channels"),
    [
        ("resnet18", "imagenet", 225, [57, 29, 15, 8], [64, 128, 256, 512]),
        ("resnet50", "imagenet", 224, [56, 28, 14, 7], [256, 512, 1024, 2048]),
        ("resnet50", "imagenet", 223, [56, 28, 14, 7], [256, 512, 1024, 2048]),
        ("resnet50", "cifar", 33, [33, 17, 9, 5], [256, 512, 1024, 2048]),
        ("resnet_tiny", "cifar", 15, [15, 8, 4], [64, 128, 256]),
    ],
)
def test_stage_maps_have_torchs_sizes(arch, stem, size, sides, channels):
    """Every stage's map is returned, coarsest last, with floor((size + 2 pad - kernel) / stride) + 1 pixels a side."""
    _, maps = shapes(net(arch, stem=stem, width=64), 2, size, size, 3)
    assert [m.shape for m in maps] == [(2, s, s, c) for s, c in zip(sides, channels, strict=True)]


def test_bottleneck_strides_on_the_3x3():
    """v1.5: the 1x1 before it keeps the resolution (v1 strides there and loses half a point)."""
    model = net("resnet50", stem="cifar")
    variables, _ = shapes(model, 1, 8, 8, 3)
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    _, seen = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, capture_intermediates=True), variables, x)
    block = seen["intermediates"]["layer2_0"]
    sides = {name: block[name]["__call__"][0].shape[1] for name in ("conv1", "conv2", "conv3", "downsample_conv")}
    assert sides == {"conv1": 8, "conv2": 4, "conv3": 4, "downsample_conv": 4}


def conv_oracle(x, kernel, stride, pad):
    """torch.nn.Conv2d in loops: (n, H, W, C) and (k, k, C, features), `pad` zeros on every side."""
    k = len(kernel)
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    side = (x.shape[1] - k) // stride + 1
    y = np.empty((len(x), side, side, kernel.shape[-1]))
    for r in range(side):
        for c in range(side):
            window = x[:, r * stride : r * stride + k, c * stride : c * stride + k]
            y[:, r, c] = np.tensordot(window, kernel, 3)
    return y


def max_pool_oracle(x):
    """torch.nn.MaxPool2d(3, 2, padding=1): padded with -inf."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    side = (x.shape[1] - 3) // 2 + 1
    rows = [[x[:, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].max((1, 2)) for c in range(side)] for r in range(side)]
    return np.stack([np.stack(row, 1) for row in rows], 1)


def unit_oracle(x, params, stats, name, stride, pad):
    """Convolution and eval-mode batch norm."""
    conv, bn = (name, name.replace("conv", "bn"))
    y = conv_oracle(x, params[conv]["kernel"], stride, pad)
    return (y - stats[bn]["mean"]) / np.sqrt(stats[bn]["var"] + 1e-5) * params[bn]["scale"] + params[bn]["bias"]


def net_oracle(x, params, stats, stem, stages):
    """torchvision's forward in numpy, a list of stage maps; v1.5 and both kinds of block, told by their parameters."""
    kernel, stride, pool = STEMS[stem]
    x = np.maximum(unit_oracle(x, params, stats, "conv1", stride, {7: 3, 3: 1}[kernel]), 0)
    x = max_pool_oracle(x) if pool else x
    maps = []
    for i in range(1, stages + 1):
        p, s, stride = params[f"layer{i}_0"], stats[f"layer{i}_0"], 1 if i == 1 else 2
        steps = [("conv1", stride, 1), ("conv2", 1, 1)]
        if "conv3" in p:
            steps = [("conv1", 1, 0), ("conv2", stride, 1), ("conv3", 1, 0)]
        y = x
        for name, by, pad in steps:
            y = unit_oracle(y if name == "conv1" else np.maximum(y, 0), p, s, name, by, pad)
        x = np.maximum(y + (unit_oracle(x, p, s, "downsample_conv", stride, 0) if "downsample_conv" in p else x), 0)
        maps.append(x)
    return maps


def scattered(tree, seed):
    """Leaves moved away from 0 and 1, so that batch norm does something; variances stay positive."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: np.abs(a) + rng.uniform(0.1, 0.5, a.shape) if a.ndim == 1 else np.asarray(a), tree)


@pytest.mark.parametrize(
    ("block", "stem", "size", "channels"), [("resnet18", "imagenet", 16, 1), ("resnet50", "cifar", 7, 3)]
)
def test_forward_is_torchs_arithmetic(block, stem, size, channels):
    """Symmetric padding (odd and even sizes), max-pool, strides, shortcuts and residual sums, against numpy loops."""
    with jax.enable_x64(True):
        arch = Arch(ARCHS[block].block, (1, 1))
        model = net(stem=stem, width=3, dtype=jnp.float64).copy(arch=arch)
        x = np.random.default_rng(0).normal(size=(2, size, size, channels))
        variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(x)
        variables = {"params": scattered(variables["params"], 1), "batch_stats": scattered(variables["batch_stats"], 2)}
        maps = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
    expected = net_oracle(x, variables["params"], variables["batch_stats"], stem, 2)
    for got, want in zip(maps, expected, strict=True):
        assert want.std() > 0.1
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def test_initialisation_is_torchs():
    """Convolutions normal (not truncated), variance 2 / fan_out; every scale 1, the last of a block too; biases 0."""
    model = net(width=16)
    x = jnp.zeros((1, 8, 8, 3))
    variables = jax.device_get(jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(x))
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables["params"])[0]:
        name = path[-1].key
        if name != "kernel":
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, {"scale": 1, "bias": 0}[name]))
            continue
        side, _, _, features = leaf.shape
        np.testing.assert_allclose(leaf.std(), np.sqrt(2 / (side * side * features)), rtol=4 / np.sqrt(2 * leaf.size))
    kernel = variables["params"]["layer3_0"]["conv2"]["kernel"]
    assert abs(kernel.mean()) < 4 * kernel.std() / np.sqrt(kernel.size)
    np.testing.assert_allclose(((kernel / kernel.std()) ** 4).mean(), 3, atol=0.15)  # a truncated normal has 2.4


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_any_number_of_channels(channels):
    """Only the first kernel depends on how many channels an image has."""
    variables, _ = shapes(net(), 1, 16, 16, channels)
    assert variables["params"]["conv1"]["kernel"].shape == (7, 7, channels, 4)


@pytest.mark.parametrize(
    ("dtype", "stored"), [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32), (jnp.float64, jnp.float64)]
)
def test_computes_in_dtype_with_parameters_in_float32_at_least(dtype, stored):
    """bfloat16 is for activations only; parameters and running statistics keep their precision."""
    with jax.enable_x64(True):
        model = net(dtype=dtype)
        variables, _ = shapes(model, 1, 16, 16, 3)
        x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        seen = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, capture_intermediates=True), variables, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(stored)}
    assert {leaf.dtype for leaf in jax.tree.leaves(seen)} == {jnp.dtype(dtype)}  # of every layer, not of the maps alone


def test_unknown_names_are_answered_with_the_known_ones():
    """A typo is met with the nearest name, not with a KeyError."""
    with pytest.raises(ConfigError, match="model.arch 'resnet5' is unknown; did you mean 'resnet50'"):
        net("resnet5")
    with pytest.raises(ConfigError, match="model.stem 'cifar10' is unknown; did you mean 'cifar'"):
        net(stem="cifar10")


def test_a_rectified_sum_has_relus_gradient():
    """Both branches get it where the sum is positive, and none where it is negative or zero."""
    y, other = jnp.array([1.0, -1.0, 2.0, 0.0]), jnp.array([0.5, 0.5, -2.0, 0.0])
    out, back = jax.vjp(resnet.rectified_sum, y, other)
    np.testing.assert_array_equal(out, [1.5, 0, 0, 0])
    for gradient in back(jnp.array([3.0, 5.0, 7.0, 9.0])):
        np.testing.assert_array_equal(gradient, [3, 0, 0, 0])


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_a_convolution_and_its_gradients_are_laxs(size, stride):
    """The result, and the gradient of the maps and of the kernel, of any gradient that comes."""
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 9, 9, 3), (size, size, 3, 5)))
    how = {"padding": [(size // 2, size // 2)] * 2, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    (y, back), (expected, expected_back) = (
        jax.vjp(lambda x, kernel, f=f: f(x, kernel, (stride, stride), **how), x, kernel)
        for f in (resnet.convolved, jax.lax.conv_general_dilated)
    )
    gradient = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    for ours, theirs in zip((y, *back(gradient)), (expected, *expected_back(gradient)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif("=".join(xla.BARRIERS) not in os.environ["XLA_FLAGS"], reason="of a jaxlib that is not told")
def test_what_surrounds_a_convolution_is_computed_once():
    """XLA:CPU, told as commands tell it, computes no ReLU again for one of the gradients, before it or behind it."""
    conv = resnet.convolution(4, 3, dtype=jnp.float32, param_dtype=jnp.float32, name="conv")
    x = jnp.ones((2, 8, 8, 4))
    variables = conv.init(jax.random.key(0), x)

    def loss(variables, x):
        return (jax.nn.relu(conv.apply(variables, jax.nn.relu(x))) ** 2).sum()

    text = jax.jit(jax.grad(loss, (0, 1))).lower(variables, x).compile().as_text()
    assert text.count(" maximum(") == 2
