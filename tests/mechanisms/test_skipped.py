"""A step that is not finite, in every mechanism: each leaf of the state stays bit for bit, but for the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.config import EndToEnd, MemoryBank, Moco, Queue
from tests import tiny

DEVICES, BAD = 2, 63  # of the axis, and the record that is not finite
CASES = {
    "moco": tiny.config(),
    "moco, symmetric, nce": tiny.config(
        moco=Moco(0.9, 0.2, symmetric=True, loss="nce", nce_batches=3), queue=Queue(40, mask_same_image=True)
    ),
    "end to end, two encoders": tiny.end_to_end(end_to_end=EndToEnd(0.2, shared=False)),
    "bank, nce": tiny.memory_bank(memory_bank=MemoryBank(12, 0.25, 0.2, "nce", nce_batches=3)),
}


class Odd:
    """The small encoder, which for an image of one value gives a gradient, or statistics, that are not finite."""

    def __init__(self, encoder, kind):
        self._encoder, self._kind = encoder, kind
        self.init, self.features = encoder.init, encoder.features

    def project(self, params, batch_stats, images):
        z, stats = self._encoder.project(params, batch_stats, images)
        bad = jnp.any(jnp.std(images, axis=(1, 2, 3)) < 1e-3).astype(z.dtype)
        if self._kind == "gradient":  # of a root at 0: infinite, and here times 0
            z += 0 * jnp.sqrt(jax.tree.leaves(params)[0].ravel()[0] ** 2 * (1 - bad))
        if self._kind == "statistics":
            stats = jax.tree.map(lambda a: jnp.where(bad > 0, jnp.inf, a), stats)
        return z, stats


@functools.cache
def stepping(case, kind):
    """(init, a function of (state, number, ids) by vmap over DEVICES) for images of which BAD is unlike the others."""
    c, stored = CASES[case], tiny.images(2, np.float32)
    stored[BAD] = np.nan if kind == "image" else 0.5
    m = tiny.mechanism(c, stored, tiny.LIGHT, encoder=Odd(tiny.small_encoder(c, 2), kind))
    mapped = jax.jit(jax.vmap(m.step, axis_name="batch", in_axes=(None, 0, None)))

    def step(state, number, ids):
        batch = tiny.batches(c, 1, number)[0] | {"ids": ids}
        batch = jax.tree.map(lambda a: a.reshape(DEVICES, -1, a.shape[-1]), batch)
        out = mapped(state, batch, {"images": jnp.asarray(stored)})
        jax.tree.map(lambda a: np.testing.assert_array_equal(a[0], a[1]), out[0])  # devices agree
        return jax.tree.map(lambda a: a[0], out)

    return m.init, step


def good(number):
    """The records of a step without the bad one."""
    rows = tiny.ids(number, 16)
    return np.where(rows == BAD, (rows + 1) % BAD, rows)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(case, kind, marks=[] if case in ("moco", "bank, nce") or kind == "image" else pytest.mark.long)
        for case in CASES
        for kind in ("image", "gradient", "statistics")
    ],
)
def test_nothing_but_the_step_changes_on_any_device(case, kind):
    """After two good steps one image of one device is bad: as query and key, and as key alone where views differ."""
    init, step = stepping(case, kind)
    state = jax.jit(init)()
    for number in range(2):
        state, metrics = step(state, number, good(number))
        assert float(metrics["skipped"]) == 0 and np.isfinite(float(metrics["loss"]))
    query_alone = "bank" in case or (case, kind) == ("moco", "gradient")  # no key, or none that has a gradient
    for views in (slice(None), slice(1, 2))[: 1 if query_alone else 2]:
        ids = good(2).copy()
        ids[-1, views] = BAD
        after, metrics = step(state, 2, ids)
        assert float(metrics["skipped"]) == 1
        assert int(after.step) == 3
        same = after.replace(step=state.step)
        jax.tree.map(np.testing.assert_array_equal, same, state)
    ahead, metrics = step(after, 3, good(3))
    assert float(metrics["skipped"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ahead))
    moved, _ = tiny.distance(ahead.online.params, state.online.params)
    assert moved > 0


@pytest.mark.parametrize("case", ["moco, symmetric, nce", "bank, nce"])
def test_a_skipped_first_batch_is_none_of_those_that_estimate_the_constant(case):
    """Three batches, whichever they are; counted by what is in the state."""
    init, step = stepping(case, "image")
    state = jax.jit(init)()
    found = []
    for number in range(6):
        ids = good(number).copy()
        ids[0] = BAD if number in (0, 2) else ids[0]
        state, _ = step(state, number, ids)
        found.append((int(state.memory.batches), float(state.memory.log_z)))
    assert [batches for batches, _ in found] == [0, 1, 1, 2, 3, 3]
    assert found[0][1] == 0 and found[1][1] == found[2][1] != 0
    assert found[4][1] == found[5][1] != found[3][1]
