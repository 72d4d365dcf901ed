"""The stem's max-pool beside XLA's own, whose gradient is a scatter."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models.pooling import max_pool

EXACT = 1e-12


def reference(x):
    """By reduce_window and select_and_scatter, to which the first of equal values is the largest."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (1, 5), (2, 3)])
@pytest.mark.usefixtures("float64")
def test_equals_xlas_pool_and_its_gradient(height, width):
    """Odd and even sizes, a single row; of four levels, so that most windows hold equal values."""
    rng = np.random.default_rng(height)
    x = jnp.asarray(rng.integers(-2, 2, (3, height, width, 2)), jnp.float64)
    gradient = jnp.asarray(rng.normal(size=reference(x).shape))
    y, back = jax.vjp(max_pool, x)
    expected, expected_back = jax.vjp(reference, x)
    assert np.array_equal(y, expected) and np.array_equal(max_pool(x), expected)
    assert np.abs(back(gradient)[0] - expected_back(gradient)[0]).max() < EXACT


def test_what_is_not_a_number_stays_one():
    """Or the guard would not see it: in the value alone, and beside a gradient."""
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert jnp.isnan(max_pool(x)).all() and jnp.isnan(jax.vjp(max_pool, x)[0]).all()


def test_gradients_are_summed_in_float32():
    """bfloat16 in and out; four windows meet in one pixel, and 1 + 1 + 1 + 256 is no sum of bfloat16s."""
    x = jnp.zeros((1, 4, 4, 1), jnp.bfloat16).at[0, 1, 1, 0].set(1)
    (found,) = jax.vjp(max_pool, x)[1](jnp.asarray([[[[1], [1]], [[1], [256]]]], jnp.bfloat16))
    assert found.dtype == jnp.bfloat16 and found[0, 1, 1, 0] == jnp.bfloat16(259)


def test_no_scatter_is_left():
    """On a GPU its atomics would add in another order each time; XLA's own gradient has one."""

    def program(pool):
        return jax.jit(jax.grad(lambda x: pool(x).sum())).lower(jnp.ones((1, 4, 4, 1))).as_text()

    assert "scatter" not in program(max_pool) and "scatter" in program(reference)
