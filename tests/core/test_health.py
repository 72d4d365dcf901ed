"""Label-free measurements against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.core import axis, health
from moco_jax.core.queue import Queue


def rows(n, c, seed=0):
    z = np.random.default_rng(seed).normal(size=(n, c))
    return jnp.asarray(z / np.linalg.norm(z, axis=1, keepdims=True), jnp.float32)


@pytest.mark.parametrize("devices", [1, 4])
def test_uniformity_is_over_all_pairs_of_different_keys(devices):
    """log mean exp(-2 |a - b|^2), i != j, whatever the device count."""
    keys = rows(8, 5)
    distance = np.square(np.asarray(keys)[:, None] - np.asarray(keys)[None]).sum(-1)
    expected = np.log(np.exp(-2 * distance)[~np.eye(8, dtype=bool)].mean())
    got = jax.vmap(lambda _: health.uniformity(axis.mean(health.potential(keys, 8 // devices))), axis_name=axis.AXIS)(
        jnp.arange(devices)
    )
    np.testing.assert_allclose(got, np.full(devices, expected), rtol=1e-5)


def test_effective_rank_counts_directions():
    """Isotropic keys use all C directions, keys on a line one."""
    assert float(health.effective_rank(jnp.concatenate([jnp.eye(6), -jnp.eye(6)]))) == pytest.approx(6, rel=1e-5)
    line = jnp.asarray([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    assert float(health.effective_rank(line)) == pytest.approx(1)
    assert float(health.effective_rank(jnp.ones((4, 3)))) == 0.0  # collapsed to a point, and no NaN


def test_alignment_is_the_squared_distance_of_the_pair():
    """|a - b|^2 = 2 - 2 a.b for unit vectors."""
    a, b = rows(1, 4)[0], rows(1, 4, seed=1)[0]
    assert float(health.alignment(a @ b)) == pytest.approx(float(jnp.sum((a - b) ** 2)), rel=1e-5)


def test_queue_age_ignores_rows_of_the_start():
    """Ages in steps of written rows only; the share written beside it."""
    memory = Queue(jnp.zeros((4, 2)), jnp.asarray(0), jnp.asarray([7, 4, -1, -1]))
    got = health.ages("queue", memory.written, jnp.asarray(10), jnp.float32)
    assert {k: float(v) for k, v in got.items()} == {
        "queue_age_mean": pytest.approx(4.5),
        "queue_age_max": 6.0,
        "queue_filled": 0.5,
    }
    empty = health.ages("queue", jnp.full(4, -1), jnp.asarray(10), jnp.float32)
    assert all(float(v) == 0 for v in empty.values())
