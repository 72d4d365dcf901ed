"""The memory bank: how it starts, who is drawn from it, and how a row moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.core import axis, bank

RECORDS, C = 40, 8


def start(dtype=jnp.float32, records=RECORDS):
    return bank.start(jax.random.key(0), records, C, dtype)


def test_it_starts_in_a_cube_of_unit_vectors_on_average():
    """Uniform within sqrt(3 / C), as the published code: mean square length one, no row written."""
    memory = start(records=4000)
    side = np.sqrt(3 / C)
    assert np.abs(memory.bank).max() < side and np.abs(memory.bank).max() > 0.99 * side
    assert float((memory.bank**2).sum(1).mean()) == pytest.approx(1, abs=0.02)
    assert (np.asarray(memory.written) == -1).all()
    assert start(jnp.bfloat16).bank.dtype == jnp.bfloat16


def drawn(step, positions, ids, count=20):
    key = jax.random.fold_in(jax.random.key(3), step)
    return np.asarray(bank.drawn(key, jnp.asarray(positions), jnp.asarray(ids), count, RECORDS))


def test_negatives_are_every_other_record_equally_often():
    """Never the own one; first, last and neighbours of the own as often as any (six standard deviations)."""
    ids = np.array([0, 17, RECORDS - 1])
    found = drawn(0, np.arange(3), ids, 39_000)
    for own, row in zip(ids, found, strict=True):
        counts = np.bincount(row, minlength=RECORDS)
        assert counts[own] == 0 and len(counts) == RECORDS
        assert np.abs(np.delete(counts, own) - 1000).max() < 6 * np.sqrt(1000)


def test_a_draw_belongs_to_step_and_position():
    """Whatever rows stand beside it; another step, another place: another draw."""
    whole = drawn(0, np.arange(6), np.arange(6))
    np.testing.assert_array_equal(drawn(0, np.arange(3, 6), np.arange(3, 6)), whole[3:])
    assert (drawn(1, np.arange(6), np.arange(6)) != whole).any(1).all()
    same_record = drawn(0, np.arange(6), np.full(6, 2))
    assert len({tuple(row) for row in same_record}) == 6


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_seen_row_moves_by_momentum_to_unit_length_and_no_other_does(devices):
    """m * row + (1 - m) * feature, normalised; every device ends with the rows of all."""
    memory = start().replace(log_z=jnp.asarray(2.0))
    ids = np.array([5, 39, 0, 17], np.int32)
    features = np.random.default_rng(1).normal(size=(4, C)).astype(np.float32)

    def update(rows, feature):
        return bank.update(memory, rows, axis.gather(feature), 0.25, jnp.asarray(9))

    parts = (ids.reshape(devices, -1), features.reshape(devices, -1, C))
    out = jax.vmap(update, axis_name="batch")(*map(jnp.asarray, parts))
    for device in range(devices):
        got = jax.tree.map(lambda a, d=device: np.asarray(a[d]), out)
        mixed = 0.25 * np.asarray(memory.bank)[ids] + 0.75 * features
        np.testing.assert_allclose(got.bank[ids], mixed / np.linalg.norm(mixed, axis=1, keepdims=True), rtol=1e-5)
        others = np.setdiff1d(np.arange(RECORDS), ids)
        np.testing.assert_array_equal(got.bank[others], np.asarray(memory.bank)[others])
        assert set(got.written[ids]) == {9} and set(got.written[others]) == {-1} and got.log_z == 2


def test_half_the_memory_keeps_its_dtype():
    """bfloat16 rows stay so; mixed and scaled in float32."""
    memory = start(jnp.bfloat16)
    features = jnp.eye(C)[:4]
    update = jax.vmap(lambda f: bank.update(memory, jnp.arange(4), f, 0.5, jnp.asarray(0)), axis_name="batch")
    got = update(features[None]).bank[0]
    mixed = 0.5 * np.asarray(memory.bank, np.float32)[:4] + 0.5 * np.asarray(features)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(got[:4], np.float32), mixed / np.linalg.norm(mixed, axis=1, keepdims=True), atol=2**-8
    )
