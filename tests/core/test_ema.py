"""The momentum update against its formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.core.ema import ema


@pytest.mark.parametrize("m", [0.0, 0.9, 0.999, 1.0])
def test_target_keeps_share_m_of_itself(m):
    """theta_k = m theta_k + (1 - m) theta_q; m = 0 copies, m = 1 freezes."""
    target, online = {"w": jnp.asarray([1.0, 2.0])}, {"w": jnp.asarray([3.0, -2.0])}
    np.testing.assert_allclose(ema(target, online, m)["w"], m * target["w"] + (1 - m) * online["w"], rtol=1e-6)


def test_step_size_is_not_rounded_to_float32_first():
    """1 - .999 formed in float32 is .0010000467, 5e-5 off; in double, rounded once, it is exact to 6e-8."""
    moved = ema({"w": jnp.zeros(())}, {"w": jnp.ones(())}, 0.999)["w"]
    assert abs(float(moved) / 1e-3 - 1) < 1e-7


def test_keeps_the_dtype_of_the_parameters(float64):
    """Double precision elsewhere must not promote a float32 tree."""
    assert ema({"w": jnp.zeros(2, jnp.float32)}, {"w": jnp.ones(2, jnp.float32)}, 0.99)["w"].dtype == jnp.float32
