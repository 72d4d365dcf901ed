"""A queue compared chunk by chunk against all logits at once: equal but for rounding, and never an (N, K) array."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.core import chunks, losses
from moco_jax.core.queue import own_keys

N, K, C, T = 6, 40, 8, 0.07
RECORDS = np.random.default_rng(4).integers(-1, 9, K)
IDS = np.stack([np.arange(N), np.arange(N) + 3], axis=1)


def vectors(seed=0, n=N, size=K):
    """Raw queries, unit keys near them, a unit queue."""
    r = np.random.default_rng(seed)
    z, k, queue = r.normal(size=(n, C)), r.normal(size=(n, C)), r.normal(size=(size, C))
    return jnp.asarray(z), losses.unit(jnp.asarray(k + z)), losses.unit(jnp.asarray(queue))


def at_once(q, k, queue, own=None):
    logits = losses.contrast_logits(q, k, queue, T)
    return losses.compared(logits if own is None else losses.leave_out(logits, own_keys(*own)))


def both(chunk, own=None, arrays=None):
    """((rows, gradient of queries) in chunks, the same at once): the loss and all measures by query."""
    z, k, queue = arrays or vectors()

    def of(compare):
        def loss(z):
            found = compare(losses.unit(z))
            return found.info_nce.mean(), found

        (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(z)
        return found, gradient

    return of(lambda q: chunks.compared(q, k, queue, T, chunk=chunk, left_out=own)), of(
        lambda q: at_once(q, k, queue, own)
    )


@pytest.mark.parametrize("chunk", [1, 8, 40])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_gradient_and_measures_are_those_of_all_logits(chunk, masked, float64):
    """In float64 to 1e-12, from one row at a time to all; with a query's own keys left out, also of whole chunks."""
    own = (jnp.asarray(IDS), jnp.asarray(RECORDS)) if masked else None
    (found, gradient), (expected, wanted) = both(chunk, own)
    assert 0 < int(expected.hit.sum()) < N
    np.testing.assert_array_equal(found.hit, expected.hit)
    for got, right in ((found.info_nce, expected.info_nce), (found.positive, expected.positive)):
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.negative, expected.negative, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-12 * float(jnp.abs(wanted).max()))


def test_a_query_may_keep_no_negative(float64):
    """All are its own keys: loss 0, a hit, mean 0 and a gradient of 0, as of all logits."""
    own = jnp.zeros((N, 2), jnp.int32), jnp.zeros(K, jnp.int32)
    (found, gradient), (expected, wanted) = both(8, own)
    for got, right in zip((*found, gradient), (*expected, wanted), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-12)
    assert found.hit.all() and not np.any(found.info_nce) and not np.any(gradient)


def test_large_logits_stay_finite_and_a_nan_is_not_hidden():
    """A largest logit in the last chunk, 200 above the first ones; a nan in a row of the queue is in loss and mean."""
    z, k, queue = (a.astype(jnp.float32) for a in vectors())
    steep = jnp.concatenate([-k[:1] for _ in range(20)] + [k[:1] for _ in range(20)])
    found = chunks.compared(k, k, steep, 0.01, chunk=4)
    np.testing.assert_allclose(found.info_nce[0], np.log(21), rtol=1e-4)
    assert np.isfinite(found.info_nce).all()
    bad = chunks.compared(losses.unit(z), k, queue.at[3, 0].set(jnp.nan), T, chunk=8)
    assert np.isnan(bad.info_nce).all() and np.isnan(bad.negative).all() and not bad.hit.any()


def test_own_keys_are_counted():
    """By record, of either view; a record of -1 is nobody's."""
    expected = [np.isin(RECORDS, row).sum() for row in IDS]
    for chunk in (1, 8, 40):
        counts = chunks.own_count(jnp.asarray(IDS), jnp.asarray(RECORDS), chunk)
        np.testing.assert_array_equal(counts, expected)
        np.testing.assert_array_equal(counts, own_keys(jnp.asarray(IDS), jnp.asarray(RECORDS)).sum(1))


def shapes(program):
    """Every array shape in a compiled program's text."""
    return {tuple(map(int, s.split(","))) for s in re.findall(r"[a-z]+\d+\[([\d,]+)\]", program)} | {
        tuple(map(int, s.split(","))) for s in re.findall(r"pred\[([\d,]+)\]", program)
    }


def test_the_compiled_loss_holds_no_array_of_all_logits():
    """Forward and backward: at once there are some, and the planned memory says the same."""
    z, k, queue = (a.astype(jnp.float32) for a in vectors(n=32, size=2048))

    def compiled(compare):
        return jax.jit(jax.grad(lambda z: compare(losses.unit(z)).info_nce.mean())).lower(z).compile()

    plain, chunked = (
        compiled(lambda q: at_once(q, k, queue)),
        compiled(lambda q: chunks.compared(q, k, queue, T, chunk=128)),
    )
    largest = [
        max(np.prod(s) for s in shapes(c.as_text()) if s not in ((2048, C), (C, 2048))) for c in (plain, chunked)
    ]
    assert largest[0] >= 32 * 2048 > largest[1]
    assert chunked.memory_analysis().temp_size_in_bytes < 4 * 32 * 2048 < plain.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_tie_is_a_hit_and_products_are_in_full(chunk):
    """As torch's argmax takes the first; and no TF32, neither forward nor back."""
    q = losses.unit(jnp.ones((1, 4)))
    queue = jnp.concatenate([q, -q, -q, -q])

    def loss(q):
        found = at_once(q, q, queue) if chunk is None else chunks.compared(q, q, queue, T, chunk=chunk)
        return found.info_nce.sum(), found.hit

    assert loss(q)[1].all()
    text = jax.jit(jax.grad(loss, has_aux=True)).lower(q).as_text()
    products = re.findall(r"dot_general.*", text)
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
