"""InfoNCE and its parts against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.core import losses


def rows(seed, n, c):
    z = np.random.default_rng(seed).normal(size=(n, c)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def test_loss_is_the_cross_entropy_of_the_positive_in_column_zero():
    """Written out in numpy: -log softmax of the positive among 1 + K, averaged over queries."""
    q, k, queue, temperature = rows(0, 4, 8), rows(1, 4, 8), rows(2, 10, 8), 0.2
    scores = np.concatenate([(q * k).sum(1, keepdims=True), q @ queue.T], 1) / temperature
    expected = np.mean(-np.log(np.exp(scores[:, 0]) / np.exp(scores).sum(1)))
    logits = losses.contrast_logits(q, k, queue, temperature)
    np.testing.assert_allclose(logits, scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(losses.info_nce(logits), expected, rtol=1e-6)


def test_what_is_left_out_is_in_no_softmax_maximum_or_mean():
    """Equal to numpy on the kept negatives alone; a query may keep none, and a nan is not hidden."""
    logits = np.asarray(rows(0, 3, 6)) * 9
    out = np.array([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    left = losses.leave_out(jnp.asarray(logits), jnp.asarray(out))
    kept = [np.append(x[0], x[1:][~o]) for x, o in zip(logits, out, strict=True)]
    np.testing.assert_allclose(
        losses.info_nce(left), np.mean([np.log(np.exp(x).sum()) - x[0] for x in kept]), rtol=1e-5
    )
    np.testing.assert_allclose(losses.pretext_accuracy(left), np.mean([x[0] >= max(x) for x in kept]))
    means = [x[1:].mean() if len(x) > 1 else 0 for x in kept]
    np.testing.assert_allclose(losses.compared(left).negative.mean(), np.mean(means), rtol=1e-5)
    np.testing.assert_allclose(losses.compared(jnp.asarray(logits)).negative.mean(), logits[:, 1:].mean(), rtol=1e-5)
    assert np.isnan(losses.compared(left.at[0, 1].set(jnp.nan)).negative.mean())
    gradient = jax.grad(lambda x: losses.info_nce(losses.leave_out(x, jnp.asarray(out))))(jnp.asarray(logits))
    assert np.isfinite(gradient).all() and not np.any(np.asarray(gradient)[:, 1:][out])


def test_chance_level_is_log_of_one_plus_k():
    """Equal logits: the loss that a run starts near."""
    assert float(losses.info_nce(jnp.zeros((3, 1 + 64)))) == pytest.approx(np.log(65))


def test_huge_logits_stay_finite():
    """logsumexp, not log of a sum: T = .01 gives logits of 100 and more."""
    assert np.isfinite(losses.info_nce(jnp.asarray([[1000.0, 999.0, -1000.0]])))


def test_unit_gives_unit_rows_keeps_zero_and_has_finite_gradient():
    """A zero row (a dead encoder) must give zero, not NaN, forward and backward."""
    z = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(losses.unit(z), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda z: losses.unit(z).sum())(z)).all()


def test_unit_leaves_half_precision():
    """Normalising in bfloat16 would cost three digits of every similarity."""
    assert losses.unit(jnp.ones((1, 4), jnp.bfloat16)).dtype == jnp.float32


def test_pretext_accuracy_counts_rows_won_by_the_positive():
    """Two of three; a tie goes to the positive, as in torch."""
    logits = jnp.asarray([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    assert float(losses.pretext_accuracy(logits)) == pytest.approx(2 / 3)
    for row, column in ((0, 0), (0, 2), (2, 1)):  # a nan is no hit
        assert float(losses.pretext_accuracy(logits.at[row, column].set(jnp.nan))) == pytest.approx(1 / 3)
