"""The projection heads: their formulas, and that they start as torch's Linear does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models.heads import HEADS, Linear, Mlp


def test_linear_head_is_one_dense_layer():
    """z = x W + b, as in MoCo v1."""
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(5, 6))
        head = Linear(3, jnp.float64)
        variables = head.init(jax.random.key(0), x, train=True)
        z = head.apply(variables, x, train=True)
    fc = jax.device_get(variables["params"]["fc"])
    np.testing.assert_allclose(z, x @ fc["kernel"] + fc["bias"], rtol=0, atol=1e-12)


def test_mlp_head_has_a_hidden_layer_as_wide_as_the_backbone():
    """z = relu(x W0 + b0) W2 + b2, as in MoCo v2; W0 is (D, D)."""
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(5, 6))
        head = Mlp(3, jnp.float64)
        variables = head.init(jax.random.key(0), x, train=True)
        z = head.apply(variables, x, train=False)
    p = jax.device_get(variables["params"])
    assert p["fc_0"]["kernel"].shape == (6, 6)
    assert p["fc_2"]["kernel"].shape == (6, 3)
    hidden = np.maximum(x @ p["fc_0"]["kernel"] + p["fc_0"]["bias"], 0)
    np.testing.assert_allclose(z, hidden @ p["fc_2"]["kernel"] + p["fc_2"]["bias"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "layers"), [("linear", ["fc"]), ("mlp", ["fc_0", "fc_2"])])
def test_weights_and_biases_start_uniform(name, layers):
    """torch.nn.Linear: weight and bias uniform in +-1/sqrt(fan_in), so the spread is that bound over sqrt(3)."""
    fan_in = 256
    params = HEADS[name](256, jnp.float32).init(jax.random.key(1), jnp.zeros((1, fan_in)), train=False)["params"]
    assert sorted(params) == layers
    bound = 1 / np.sqrt(fan_in)
    for layer in layers:
        kernel, bias = (np.asarray(params[layer][leaf], np.float64) for leaf in ("kernel", "bias"))
        assert 0.999 * bound < np.abs(kernel).max() <= bound
        assert 0.9 * bound < np.abs(bias).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)
        np.testing.assert_allclose(bias.std(), bound / np.sqrt(3), rtol=0.15)
        assert abs(kernel.mean()) < 0.02 * bound
        assert not np.array_equal(kernel[0], bias)
