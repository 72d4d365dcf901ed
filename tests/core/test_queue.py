"""The queue against a list that drops its oldest rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.core import axis, queue


def filled(size, batch, steps):
    memory = queue.start(jax.random.key(0), size, 3, jnp.float32)
    written = []
    for step in range(steps):
        keys = np.full((batch, 3), step, np.float32) + np.arange(batch, dtype=np.float32)[:, None] / 100
        written += list(keys)
        memory = queue.enqueue(memory, jnp.asarray(keys), jnp.asarray(step))
    return memory, written


@pytest.mark.parametrize(("size", "batch"), [(12, 4), (10, 4), (7, 7), (5, 3)])
def test_holds_exactly_the_last_k_keys(size, batch):
    """First in, first out, also where the batch does not divide K and a batch wraps over the end."""
    memory, written = filled(size, batch, steps=9)
    expected = {tuple(k) for k in written[-size:]}
    assert {tuple(k) for k in np.asarray(memory.queue)} == expected
    assert int(memory.ptr) == 9 * batch % size


def test_keys_keep_their_order_and_pointer_is_the_oldest_row():
    """Read from the pointer on, the ring is the sequence of keys, oldest first."""
    memory, written = filled(10, 4, steps=6)
    np.testing.assert_array_equal(np.roll(memory.queue, -int(memory.ptr), axis=0), written[-10:])


def test_written_names_the_step_of_every_row():
    """-1 for rows of the start, else the step whose keys are there."""
    memory, _ = filled(10, 4, steps=2)
    np.testing.assert_array_equal(memory.written, [0] * 4 + [1] * 4 + [-1] * 2)
    memory, _ = filled(10, 4, steps=3)
    np.testing.assert_array_equal(memory.written, [2] * 2 + [0] * 2 + [1] * 4 + [2] * 2)


def test_starts_with_unit_rows():
    """The original normalises its random start; a row of another length would be a louder negative."""
    memory = queue.start(jax.random.key(0), 50, 8, jnp.float32)
    np.testing.assert_allclose(np.linalg.norm(memory.queue, axis=1), 1, rtol=1e-5)
    assert np.unique(memory.queue, axis=0).shape[0] == 50


def test_batch_larger_than_the_queue_is_refused():
    """With repeated rows in one scatter it would be undefined which key stays."""
    memory = queue.start(jax.random.key(0), 4, 3, jnp.float32)
    with pytest.raises(ValueError, match="5 keys per step do not fit a queue of 4"):
        queue.enqueue(memory, jnp.ones((5, 3)), jnp.asarray(0))


@pytest.mark.parametrize("devices", [1, 4])
def test_own_keys_are_those_of_a_record_of_the_row(devices):
    """Queue ids come in parts of all devices, filled up at the end; a row of the start counts for nobody."""
    memory = queue.Queue(jnp.zeros((10, 2)), jnp.asarray(2), jnp.asarray([3, 3, 2, -1, 2, -1, 3, 3, 3, 3]))
    newest_first = [9, 4, 7, 2, 0, 0, 9, 5, 7, 4]
    spread = jnp.asarray([*newest_first, -1, -1]).reshape(devices, 4 // devices, 3)
    behind = jax.vmap(lambda rows: queue.behind(memory, rows, 6, jnp.asarray(4)), axis_name=axis.AXIS)(spread)
    np.testing.assert_array_equal(behind, [[4, 9, 4, -1, 5, -1, 0, 0, 2, 7]] * devices)
    own = queue.own_keys(jnp.asarray([[4, 7], [0, 0], [5, 5]]), behind[0])
    assert [np.flatnonzero(row).tolist() for row in own] == [[0, 2, 9], [6, 7], [4]]


@pytest.mark.parametrize("bad", [(0, 4, 5, 9), (1, 4, 5, 9)], ids=str)
@pytest.mark.parametrize(("size", "batch"), [(12, 4), (10, 4), (7, 7), (5, 3)])
def test_steps_that_are_held_back_leave_everything_and_keys_stay_theirs(size, batch, bad):
    """Some of twelve steps enqueue nothing: rows, pointer and steps stay, and each row's record is still found.

    Keys of steps that the order says are gone are -1; a step's own rows are found by its number.
    """
    memory = queue.start(jax.random.key(0), size, 3, jnp.float32)
    stored, record = {}, lambda step, place: 100 * step + place  # row -> (step, place in the batch)
    on_one = lambda f: jax.vmap(f, axis_name=axis.AXIS)(jnp.zeros(1))[0]  # noqa: E731
    for step in range(12):
        ok = step not in bad
        keys = np.full((batch, 3), step, np.float32) + np.arange(batch, dtype=np.float32)[:, None] / 100
        before, first = memory, int(memory.ptr)
        memory = queue.enqueue(
            memory, jnp.asarray(keys) if ok else jnp.full((batch, 3), jnp.nan), jnp.asarray(step), ok=ok
        )
        if not ok:
            jax.tree.map(np.testing.assert_array_equal, memory, before)
        stored |= {(first + place) % size: (step, place) for place in range(batch) if ok}
        order = [record(s, p) for s in range(step, -1, -1) for p in range(batch - 1, -1, -1)][:size]  # newest first
        order += [-1] * (size - len(order))
        spread = jnp.asarray([order])  # one device, a row
        found = on_one(lambda _, s=spread, m=memory, t=step: queue.behind(m, s, batch, jnp.asarray(t + 1)))
        known = {row: record(*key) for row, key in stored.items() if record(*key) in order}
        np.testing.assert_array_equal(found, [known.get(row, -1) for row in range(size)])
        for written in sorted({s for s, _ in stored.values()}):
            places = {place: row for row, (s, place) in stored.items() if s == written}
            if len(places) == batch:
                rows = on_one(lambda _, m=memory, w=written: queue.rows_of(m, batch, jnp.asarray(w), batch))
                expected = np.asarray(memory.queue)[[places[p] for p in range(batch)]]
                np.testing.assert_array_equal(rows[0], expected)
