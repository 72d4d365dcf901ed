"""NCE against the published code's own arithmetic (Wu and others, NCEAverage and NCECriterion), and its constant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from moco_jax.core import nce

RECORDS, K = 500, 12
EPS = 1e-7  # which the published code adds to denominators


def logits(seed=0, n=6, scale=3.0):
    return scale * np.random.default_rng(seed).normal(size=(n, 1 + K))


def published(scores, z=None):
    """(loss, Z) as that code computes them from similarities over T (n, 1 + K): NCEAverage, then NCECriterion."""
    out = np.exp(scores)
    z = out.mean() * RECORDS if z is None else z
    out = out / z
    noise = 1 / RECORDS
    key = out[:, 0] / (out[:, 0] + K * noise + EPS)
    others = K * noise / (out[:, 1:] + K * noise + EPS)
    return -(np.log(key).sum() + np.log(others).sum()) / len(out), z


class Memory(struct.PyTreeNode):
    log_z: jax.Array
    batches: jax.Array


def by_devices(function, rows, devices):
    """A per-device function of rows, by vmap over equal parts: every device's result."""
    return jax.vmap(function, axis_name="batch")(jnp.asarray(rows).reshape(devices, -1, *rows.shape[1:]))


def estimated(scores, *, known=0.0, step=0, batches=1, devices=2):
    memory = Memory(jnp.asarray(known), jnp.asarray(step))
    found = np.asarray(by_devices(lambda rows: nce.log_z(memory, rows, RECORDS, batches), scores, devices))
    assert len(set(found.tolist())) == 1  # the same on all devices
    return float(found[0])


def test_loss_and_constant_are_those_of_the_published_code(float64):
    """The first batch sets Z; the next one is judged by it."""
    first, second = logits(0), logits(1)
    loss, z = published(first)
    log_z = estimated(first)
    assert log_z == pytest.approx(np.log(z), rel=1e-12)
    assert float(nce.nce(jnp.asarray(first), log_z, RECORDS)) == pytest.approx(loss, rel=1e-4)  # without its EPS
    assert estimated(second, known=log_z, step=1) == log_z
    assert float(nce.nce(jnp.asarray(second), log_z, RECORDS)) == pytest.approx(published(second, z)[0], rel=1e-4)


def test_the_gradient_is_that_of_the_published_code(float64):
    """By differences of its arithmetic, for every similarity."""
    scores, z = logits(2), 900.0
    got = np.asarray(jax.grad(lambda x: nce.nce(x, jnp.log(z), RECORDS))(jnp.asarray(scores)))
    for place in np.ndindex(*scores.shape):
        move = np.zeros_like(scores)
        move[place] = 1e-5
        expected = (published(scores + move, z)[0] - published(scores - move, z)[0]) / 2e-5
        assert got[place] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_constant_is_the_mean_over_the_first_batches_and_then_kept(float64):
    """Three batches of three different means; the fourth changes nothing, on one device as on three."""
    means, known = [], 0.0
    for step in range(3):
        scores = logits(step, scale=step + 1.0)
        means.append(np.exp(scores).mean() * RECORDS)
        one = estimated(scores, known=known, step=step, batches=3, devices=1)
        known = estimated(scores, known=known, step=step, batches=3, devices=3)
        assert known == pytest.approx(np.log(np.mean(means)), rel=1e-10) == one
    assert estimated(logits(7), known=known, step=3, batches=3) == known


@pytest.mark.parametrize(
    ("batches", "ok", "expected"), [(3, True, (1.5, 3)), (2, True, (2.5, 3)), (2, False, (1.5, 2))]
)
def test_the_constant_is_remembered_while_it_is_estimated_and_the_step_is_good(batches, ok, expected):
    """A batch that was skipped counts as none, so that the mean stays one over good batches."""
    memory = Memory(jnp.asarray(1.5), jnp.asarray(batches))
    got = nce.remembered(memory, jnp.asarray(2.5), 3, ok=jnp.asarray(ok))
    assert (float(got.log_z), int(got.batches)) == expected


def test_what_is_left_out_counts_nowhere():
    """Not in the loss, not in its gradient, not in the constant's mean."""
    scores = jnp.asarray(logits(3, n=4), jnp.float32)
    left = scores.at[:, 5:].set(-jnp.inf)
    kept = scores[:, :5]
    assert estimated(np.asarray(left)) == pytest.approx(estimated(np.asarray(kept)), rel=1e-6)
    uneven = left.at[0, 1:].set(-jnp.inf)  # devices keep unlike numbers: a mean over all, not of their means
    every = np.asarray(uneven)[np.isfinite(uneven)]
    assert estimated(np.asarray(uneven)) == pytest.approx(np.log(np.exp(every).mean() * RECORDS), rel=1e-6)
    whole = nce.nce(left, jnp.log(900.0), RECORDS)
    noise = np.log(K * 900 / RECORDS)
    expected = np.logaddexp(0, noise - kept[:, 0]) + np.logaddexp(0, kept[:, 1:] - noise).sum(1)
    assert float(whole) == pytest.approx(float(expected.mean()), rel=1e-5)
    gradient = np.asarray(jax.grad(lambda x: nce.nce(x, jnp.log(900.0), RECORDS))(left))
    assert np.isfinite(gradient).all() and not gradient[:, 5:].any() and gradient[:, :5].any()


def test_no_gradient_goes_through_the_constant():
    """It is a number that the first batches leave."""

    def through(x):
        return by_devices(lambda r: nce.log_z(Memory(jnp.zeros(()), jnp.asarray(0)), r, RECORDS, 1), x, 2).sum()

    assert not np.any(jax.grad(through)(jnp.asarray(logits(4), jnp.float32)))


def test_small_temperatures_stay_finite():
    """T = .005: exp(200) is no float32."""
    scores = jnp.full((2, 1 + K), 200.0)
    log_z = estimated(np.asarray(scores))
    assert np.isfinite(log_z) and np.isfinite(nce.nce(scores, log_z, RECORDS))


def test_chance_is_the_loss_of_equal_similarities():
    """Whatever they are: the constant is estimated from them."""
    for value in (-1.0, 0.0, 4.0):
        scores = np.full((2, 1 + K), value)
        assert float(nce.nce(jnp.asarray(scores), estimated(scores), RECORDS)) == pytest.approx(nce.chance(K), rel=1e-5)
