"""The headline property: the same algorithm and the same draws whatever the hardware.

In float64, five steps of the shipped step (encoder, views, augmentation on the device, shuffle and batch-norm groups
on, a query's own old keys left out) leave the same state on 1, 2, 4 and 8 devices, and with micro-batches, for the
same global batch.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from moco_jax import parallel
from moco_jax.config import BatchNorm, EndToEnd, MemoryBank, Moco, Queue, Shuffle
from moco_jax.views.recipes import RECIPES
from tests import tiny

STEPS = 5
TOLERANCE = 1e-10  # max|a - b| / max|b| per tensor; rounding leaves 5e-15

BASE = tiny.config()
SPANNING = dataclasses.replace(BASE, bn=BatchNorm(8), shuffle=Shuffle(16))  # over two devices of 4, or four of 8
SYMMETRIC = Moco(0.9, 0.2, symmetric=True)
MASKED = Queue(40, mask_same_image=True)  # rows of the batch hold 3 of its rows each, the last ones none
CASES = {
    "groups and blocks inside a device": dataclasses.replace(BASE, queue=MASKED),
    "symmetric": dataclasses.replace(BASE, moco=SYMMETRIC, queue=MASKED),  # inside a device, as micro-batches ask for
    "everything on": dataclasses.replace(SPANNING, moco=SYMMETRIC, queue=MASKED),
    "one group over all devices": dataclasses.replace(BASE, bn=BatchNorm(0), shuffle=Shuffle(0)),
    "nce": dataclasses.replace(BASE, moco=Moco(0.9, 0.2, symmetric=True, loss="nce", nce_batches=3), queue=MASKED),
    "end to end": tiny.end_to_end(),
    "end to end, everything on": tiny.end_to_end(
        bn=BatchNorm(8), shuffle=Shuffle(16), end_to_end=EndToEnd(0.2, symmetric=True, shared=False)
    ),
    "bank": tiny.memory_bank(),
    "bank, nce": tiny.memory_bank(memory_bank=MemoryBank(12, 0.25, 0.2, "nce", nce_batches=3)),
}


@functools.cache  # a compile costs seconds, and every claim here is about the same few states
def left_by(case, devices, *, microbatch=None, streamed=False, **options):
    """What five steps left; one compile of the step, at the first of them."""
    c = tiny.double(CASES[case])
    c = dataclasses.replace(c, train=dataclasses.replace(c.train, microbatch_size=microbatch))
    stored = tiny.images()
    batches = tiny.streamed(stored, c, RECIPES["moco_v2"], STEPS) if streamed else tiny.batches(c, STEPS)
    m = tiny.mechanism(c, stored, RECIPES["moco_v2"], **options)
    run = tiny.run(m, stored, batch_size=c.batch_size, devices=devices, steps=STEPS, batches=batches)
    assert sum("_fun" in n or "step" in n for n in run.compiled[0]) == 1, run.compiled  # one compile of the step
    assert not any(run.compiled[1:]), run.compiled
    return run


def state_of(*case, **options):
    return left_by(*case, **options).state


def assert_same(a, b):
    gap, where = tiny.distance(a, b)
    assert gap < TOLERANCE, f"{where}: {gap:.1e}"


def test_a_nan_is_no_equality():
    """Wherever it is, before or behind leaves that agree."""
    for place in range(3):
        a, b = [np.ones(2), np.ones(2), np.arange(3)], [np.ones(2), np.ones(2), np.arange(3)]
        a[place] = np.full(len(a[place]), np.nan)
        with pytest.raises(AssertionError, match="nan"):
            assert_same(a, b)


def test_two_devices_and_micro_batches_equal_one(float64):
    """The quick case: 16 images as 1 x 16, 2 x 8 and 2 x 2 micro-batches of 4; metrics and the count of own keys."""
    one = left_by("groups and blocks inside a device", 1)
    other = left_by("groups and blocks inside a device", 2, microbatch=4)
    assert_same(other.state, one.state)
    assert_same(other.metrics, one.metrics)
    last = tiny.batches(CASES["groups and blocks inside a device"], STEPS)[-1]
    assert one.metrics["own_keys"] == pytest.approx(np.isin(last["queue_ids"], last["ids"]).sum() / 16)


@pytest.mark.parametrize(
    ("case", "counts"),
    [
        pytest.param("everything on", (8,), marks=pytest.mark.slow),
        pytest.param("bank, nce", (4,), marks=pytest.mark.long),
        *(
            pytest.param(case, counts, marks=pytest.mark.long)
            for case, counts in {
                "groups and blocks inside a device": (2, 4, 8),
                "everything on": (2, 4),
                "one group over all devices": (4,),
                "nce": (4,),
                "end to end": (2, 4),
                "end to end, everything on": (2, 4, 8),
                "bank": (2, 4),
            }.items()
        ),
    ],
)
def test_device_count_does_not_matter(case, counts, float64):
    """1 = 2 = 4 = 8 devices, groups and blocks inside a device or over several; symmetric when everything is on.

    End to end the gradients of keys come from the queries of other devices.
    """
    for devices in counts:
        assert_same(state_of(case, devices), state_of(case, 1))


@pytest.mark.long
def test_device_count_does_not_matter_to_streamed_rows(float64):
    """Everything on, raw views cut on the host: 1 = 2 = 4 = 8 devices.

    Among themselves: the host draws and cuts other boxes than the device does, so a streamed run is another run.
    """
    for devices in (2, 4, 8):
        assert_same(state_of("everything on", devices, streamed=True), state_of("everything on", 1, streamed=True))


@pytest.mark.parametrize(
    ("case", "devices", "scan"),
    [
        pytest.param("groups and blocks inside a device", 1, False, marks=pytest.mark.long),
        pytest.param("groups and blocks inside a device", 1, True, marks=pytest.mark.long),
        pytest.param("symmetric", 2, False, marks=pytest.mark.long),
        pytest.param("bank", 2, False, marks=pytest.mark.long),
    ],
)
def test_micro_batches_do_not_matter(case, devices, scan, float64):
    """Parts of four images, unrolled as on CPU and scanned as on accelerators, on one device and on two.

    Groups lie inside a part; those that leave the device are refused with micro-batches.
    """
    assert_same(state_of(case, devices, microbatch=4, scan=scan), state_of(case, 1))


@pytest.mark.long
def test_micro_batches_do_not_matter_to_streamed_rows(float64):
    """Raw views cut on the host, two devices in two parts each."""
    one = state_of("groups and blocks inside a device", 1, streamed=True)
    assert_same(state_of("groups and blocks inside a device", 2, microbatch=4, streamed=True), one)


@pytest.mark.long
def test_seed_step_and_shuffle_do_matter(float64):
    """The property is no accident of constants: another seed, or no shuffle, leaves another state."""
    one = state_of("groups and blocks inside a device", 1)
    for change in ({"seed": 1}, {"shuffle": Shuffle(0)}):  # from the same initial values
        c = tiny.double(dataclasses.replace(BASE, **change))
        stored = tiny.images()
        other = tiny.run(tiny.mechanism(c, stored), stored, batch_size=16, steps=STEPS).state
        assert tiny.distance(other.memory.queue, one.memory.queue)[0] > 1e-3


def by_shard_map(step, over):
    """The same per-device step by jit(shard_map), the way off pmap should JAX drop it."""
    from jax.sharding import Mesh
    from jax.sharding import PartitionSpec as P

    def flat(state, batch, data):
        return step(state, jax.tree.map(lambda a: a[0], batch), data)

    mesh = Mesh(np.asarray(over), ("batch",))
    specs = {"in_specs": (P(), P("batch"), P()), "out_specs": (P(), P())}
    return jax.jit(jax.shard_map(flat, mesh=mesh, check_vma=False, **specs), donate_argnums=0)


@pytest.mark.long
def test_shard_map_gives_the_same_bits_as_pmap():
    """Four devices, groups and blocks over two each."""
    stored = tiny.images()
    m = tiny.mechanism(SPANNING, stored)
    a = tiny.run(m, stored, batch_size=16, devices=4).state
    b = tiny.run(m, stored, batch_size=16, devices=4, mapped=by_shard_map).state
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.long
def test_vmap_on_one_device_equals_pmap(float64):
    """Groups and blocks that lie inside a device need no hardware at all."""
    c = tiny.double(CASES["groups and blocks inside a device"])
    stored = tiny.images()
    m = tiny.mechanism(c, stored)

    def by_vmap(step, over):
        mapped = jax.vmap(step, axis_name="batch", in_axes=(None, 0, None), out_axes=0, axis_size=2)
        return jax.jit(lambda *a: jax.tree.map(lambda x: x[0], mapped(*a)))

    over = jax.devices()[:1]
    state, data, mapped = tiny.born(m, over), {"images": stored}, by_vmap(m.step, over)
    for batch in tiny.batches(c, STEPS):
        state, _ = mapped(state, jax.tree.map(lambda a: a.reshape(2, 8, -1), batch), data)
    assert_same(parallel.host(state), state_of("groups and blocks inside a device", 2))


def test_without_shuffle_key_groups_are_query_groups():
    """The leak, shown: with shuffle off, a key depends on exactly the images of its query's group; with it on, not.

    Change one image and see which keys change through the batch statistics.
    """
    stored = tiny.images()
    first = tiny.ids(0, 16)
    changed = stored.copy()
    changed[first[0, 1]] = 255 - changed[first[0, 1]]

    def keys_that_move(block):
        c = dataclasses.replace(BASE, shuffle=Shuffle(block), queue=Queue(16))
        m = tiny.mechanism(c, stored, tiny.LIGHT, tiny.small_encoder(c, 3))
        queues = [tiny.run(m, x, batch_size=16, steps=1).state.memory.queue for x in (stored, changed)]
        return set(np.flatnonzero((queues[0] != queues[1]).any(1)))

    assert keys_that_move(0) == {0, 1, 2, 3}
    moved = keys_that_move(16)
    assert len(moved) == 4 and 0 in moved and moved != {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint16), (3, np.uint8), (13, np.float32)])
def test_a_step_runs_on_any_channel_count_and_storage_dtype(channels, dtype):
    """Photos, X-rays, satellite bands: on two devices, finite, and each channel moves the first convolution."""
    stored = tiny.images(channels, dtype)
    m = tiny.mechanism(BASE, stored, encoder=tiny.small_encoder(BASE, channels))
    before = parallel.host(tiny.born(m, jax.devices()[:1])).online.params["backbone"]["Conv_0"]["kernel"]
    run = tiny.run(m, stored, batch_size=16, devices=2, steps=2)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(run.state))
    moved = np.abs(run.state.online.params["backbone"]["Conv_0"]["kernel"] - before).max((0, 1, 3))
    assert moved.shape == (channels,) and (moved > 1e-6).all()
