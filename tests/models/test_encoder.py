"""The encoder as functions: what they return, what they read and what they leave alone."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.config import BatchNorm, ConfigError, Model
from moco_jax.models import encoder, heads, resnet

MODEL = Model(arch="resnet_tiny", stem="cifar", width=4, head="mlp", dim=5)


def make(*, group=2, channels=3, dtype=jnp.float32, **changes):
    model = dataclasses.replace(MODEL, **changes)
    return encoder.from_config(model, BatchNorm(group), channels=channels, size=8, dtype=dtype)


def images(n, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 8, 8, channels)).astype(np.float32)


def describe(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype.name), tree)


@pytest.fixture(scope="module")
def made():
    """The variables of a tiny encoder with groups of two, and its functions compiled."""
    enc = encoder.Encoder(*(jax.jit(f) for f in make()[:3]), "compiled")
    variables = enc.init(jax.random.key(0))
    return variables["params"], variables["batch_stats"], enc


def test_subtrees_are_named_and_initialisation_has_no_collective():
    """Group 0 would need a mapped axis; init runs outside of one and gives exactly the agreed subtrees."""
    variables = jax.eval_shape(make(group=0).init, jax.random.key(0))
    assert set(variables) == {"params", "batch_stats"}
    assert set(variables["params"]) == {"backbone", "head"}
    assert set(variables["params"]["head"]) == {"fc_0", "fc_2"}
    assert set(variables["batch_stats"]) == {"backbone"}


def test_initialisation_is_a_function_of_the_key(made):
    """The same key gives the same bits, another key other weights."""
    params, _, enc = made
    same, other = enc.init(jax.random.key(0))["params"], enc.init(jax.random.key(1))["params"]
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert not np.array_equal(same["backbone"]["conv1"]["kernel"], other["backbone"]["conv1"]["kernel"])


def test_project_advances_statistics_and_keeps_their_shape(made):
    """Train mode returns unnormalised projections and new running statistics in the same tree; its inputs stay."""
    params, stats, enc = made
    z, new = enc.project(params, stats, images(4))
    assert z.shape == (4, 5)
    assert z.dtype == jnp.float32
    assert np.ptp(np.linalg.norm(z, axis=1)) > 1e-3
    assert describe(new) == describe(stats)
    assert not any(jax.tree.leaves(jax.tree.map(np.allclose, new, stats)))


def test_project_normalises_within_groups(made):
    """Another image changes the projections of its own group of two, and of no other."""
    params, stats, enc = made
    x = images(4)
    z = enc.project(params, stats, x)[0]
    # A new array: the first call may still be reading x, which JAX on the CPU takes without a copy.
    changed = enc.project(params, stats, np.concatenate([x[:3], images(1, seed=1)]))[0]
    np.testing.assert_array_equal(z[:2], changed[:2])
    assert np.abs(z[2] - changed[2]).max() > 1e-4


def test_features_read_running_statistics(made):
    """Eval mode: every image by itself, whatever its neighbours, and other statistics give other features."""
    params, stats, enc = made
    x = images(4)
    out = enc.features(params, stats, x)
    alone = enc.features(params, stats, np.tile(x[2:3], (4, 1, 1, 1)))
    np.testing.assert_allclose(out["backbone"][2], alone["backbone"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out["head"][2], alone["head"][0], rtol=1e-5, atol=1e-6)
    other = enc.features(params, jax.tree.map(lambda a: a * 2 + 1, stats), x)
    assert np.abs(other["backbone"] - out["backbone"]).max() > 1e-2


def test_features_are_the_pooled_map_and_the_head_of_it(made):
    """`backbone` is the mean over pixels of the last map, `head` is the MLP of exactly that."""
    params, stats, enc = made
    x = images(4)
    out = jax.device_get(enc.features(params, stats, x))
    backbone = resnet.build("resnet_tiny", stem="cifar", width=4, group_size=2, dtype=jnp.float32)
    variables = {"params": params["backbone"], "batch_stats": stats["backbone"]}
    maps = jax.jit(lambda v, x: backbone.apply(v, x, train=False))(variables, x)
    np.testing.assert_allclose(out["backbone"], np.asarray(maps[-1]).mean((1, 2)), rtol=1e-5, atol=1e-6)
    fc_0, fc_2 = params["head"]["fc_0"], params["head"]["fc_2"]
    hidden = np.maximum(out["backbone"] @ fc_0["kernel"] + fc_0["bias"][None], 0)
    np.testing.assert_allclose(out["head"], hidden @ fc_2["kernel"] + fc_2["bias"][None], rtol=1e-4, atol=1e-5)


def test_pooling_sums_in_float32():
    """The mean over 49 pixels is rounded once, to float32, and not to bfloat16 on the way."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 7, 3)) + 5, jnp.bfloat16)
    pooled = encoder.pool([x])
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, np.asarray(x, np.float64).mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "out"), [(jnp.bfloat16, "float32"), (jnp.float32, "float32"), (jnp.float64, "float64")]
)
def test_outputs_and_parameters_are_float32_at_least(dtype, out):
    """What the loss and evaluations compare is never bfloat16; in float64 everything is float64."""
    with jax.enable_x64(True):
        enc = make(dtype=dtype)
        variables = jax.eval_shape(enc.init, jax.random.key(0))
        inputs = variables["params"], variables["batch_stats"], jax.ShapeDtypeStruct((2, 8, 8, 3), dtype)
        outputs = jax.eval_shape(enc.project, *inputs), jax.eval_shape(enc.features, *inputs)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((variables, outputs))} == {out}


@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_any_number_of_channels_and_either_head(channels, head):
    """Gray images, photos and satellite bands pass through the same functions."""
    enc = make(channels=channels, head=head)
    variables = jax.eval_shape(enc.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 8, 8, channels), jnp.float32)
    out = jax.eval_shape(enc.features, variables["params"], variables["batch_stats"], x)
    assert {k: v.shape for k, v in out.items()} == {"backbone": (2, 16), "head": (2, 5)}


def test_label_says_what_it_is():
    """The label is what a checkpoint is recognised by."""
    assert make().label == "resnet_tiny(width=4, stem=cifar)+mlp5"


class Patches(nn.Module):
    """A user's backbone: no batch norm, one map, or something else on purpose."""

    returns: str = "maps"

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(6, (4, 4), strides=4)(x)
        if self.returns == "cache":
            self.variable("cache", "seen", jnp.zeros, (1,))
        return x if self.returns == "array" else [x]


def user_encoder(returns):
    head = heads.Linear(3, jnp.float32)
    return encoder.build(Patches(returns), head, input_shape=(8, 8, 2), label="patches")


def test_a_users_backbone_needs_no_batch_norm():
    """Any linen module that returns maps will do; without running statistics the tree for them is empty."""
    enc = user_encoder("maps")
    variables = enc.init(jax.random.key(0))
    z, stats = enc.project(variables["params"], variables["batch_stats"], images(4, 2))
    assert variables["batch_stats"] == stats == {}
    np.testing.assert_allclose(z, enc.features(variables["params"], stats, images(4, 2))["head"], rtol=1e-5)


@pytest.mark.parametrize(("returns", "message"), [("array", "list of its stages' maps"), ("cache", "keeps .'cache'.")])
def test_a_backbone_that_does_not_fit_is_refused(returns, message):
    """The last item of an array would be its last image, and a collection nobody carries would be lost, silently."""
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(user_encoder(returns).init, jax.random.key(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet51"}, "model.arch 'resnet51' is unknown"),
        ({"stem": "tiny"}, "model.stem 'tiny' is unknown"),
        ({"head": "mpl"}, "model.head 'mpl' is unknown; did you mean 'mlp'"),
        ({"width": 0}, "model.width is 0; it must be at least 1"),
        ({"dim": 0}, "model.dim is 0; it must be at least 1"),
        ({"group": -1}, "bn.group_size is -1; it must be at least 0"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(changes, message):
    """The refusal names the key and comes when the encoder is made, before any array is."""
    with pytest.raises(ConfigError, match=message):
        make(**changes)
