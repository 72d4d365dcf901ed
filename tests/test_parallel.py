"""Devices: identical copies, one compile, a short batch refused, lowering for hardware that is not here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import parallel
from moco_jax.config import ConfigError
from tests import tiny


def test_a_state_that_differs_between_devices_is_found():
    """pmap returns it without an error; every save asks first."""
    replicated = parallel.born(lambda: {"w": jnp.ones(3), "v": jnp.zeros(2)})
    parallel.check_identical(replicated)
    drifting = jax.pmap(lambda x: {"w": x * jax.lax.axis_index("batch"), "v": x}, axis_name="batch", out_axes=None)
    with pytest.raises(RuntimeError, match=r"state\['w'\] differs between devices"):
        parallel.check_identical(drifting(jnp.ones((8, 3))))


def test_a_short_batch_is_refused():
    """Rows for seven of eight devices would move the state to seven."""
    mapped = parallel.mapped(lambda s, b, d: (s, {"loss": b["x"].sum()}))
    state = parallel.born(lambda: {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)})
    with pytest.raises(ValueError, match="7"):
        mapped(state, {"x": np.ones((7, 2))}, {})


def test_rows_keep_their_order_over_devices():
    """Row i of the global batch lies on device i // n, for every step of a call."""
    batch = {"ids": np.arange(2 * 16 * 2).reshape(2, 16, 2)}
    put = parallel.put_batch(batch)["ids"]
    assert put.shape == (8, 2, 2, 2)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(put), 0, 1).reshape(2, 16, 2), batch["ids"])


def test_several_steps_per_call_are_refused_on_cpu():
    """A scan over convolution gradients is some 30 times slower there."""
    with pytest.raises(ConfigError, match="train.steps_per_call 4 is for GPUs and TPUs"):
        parallel.map_step(lambda s, b, d: (s, {}), steps_per_call=4)


@pytest.mark.parametrize(
    ("name", "message"), [("float16", "model.dtype 'float16' is unknown"), ("float64", "JAX_ENABLE_X64")]
)
def test_compute_dtype_is_refused(name, message):
    """No silent change of precision."""
    with pytest.raises(ConfigError, match=message):
        parallel.compute_dtype(name)


def test_auto_is_float32_on_cpu():
    """bfloat16 is emulated there."""
    assert parallel.compute_dtype("auto") == jnp.float32


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_step_lowers_for_hardware_that_is_not_here(platform):
    """Shuffle, groups over devices, device augmentation and gather, lowered from a CPU host for 8 devices."""
    import dataclasses

    from moco_jax.config import BatchNorm, Shuffle

    c = dataclasses.replace(tiny.config(), bn=BatchNorm(4), shuffle=Shuffle(16))
    stored = tiny.images()
    m = tiny.mechanism(c, stored, scan=True)
    shapes = (
        jax.eval_shape(m.init),
        {"ids": jax.ShapeDtypeStruct((8, 2, 2), jnp.int32)},
        {"images": jax.ShapeDtypeStruct(stored.shape, stored.dtype)},
    )
    text = parallel.lower(m.step, shapes, platform=platform)
    assert "all_gather" in text and "all_reduce" in text


def test_half_a_cluster_is_refused(monkeypatch):
    """A coordinator without a process number would train every process alone, in one folder."""
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ConfigError, match="without JAX_PROCESS_ID: set all or none"):
        parallel.start()


def test_several_steps_per_call_are_the_same_steps(monkeypatch):
    """What accelerators dispatch, a scan: three steps in one call and three calls of one leave the same bits.

    They would not everywhere, did XLA write a loop of one turn out, and fuse it otherwise: it is kept.
    """
    monkeypatch.setattr(parallel, "on_cpu", lambda: False)
    c, stored = tiny.config(), tiny.images()
    m = tiny.mechanism(c, stored, tiny.LIGHT, encoder=tiny.small_encoder(c, 3))
    over = jax.devices()[:1]
    data = {"images": jax.device_put(stored, parallel.replicated(over))}
    ids = np.stack([tiny.ids(step, 16) for step in range(3)])[None]  # (devices, steps, n, V)

    mapped = parallel.mapped(parallel.call_of(m.step), over)
    one = mapped.lower(tiny.born(m, over), {"ids": ids[:, :1]}, data).compile().as_text()
    assert '"known_trip_count":{"n":"1"}' in one

    def run(calls):
        state, losses = tiny.born(m, over), []
        for part in np.split(ids, calls, axis=1):
            state, metrics = mapped(state, {"ids": part}, data)
            losses += np.asarray(metrics["loss"]).tolist()
        return parallel.host(state), losses

    (together, losses), (apart, others) = run(1), run(3)
    assert tiny.distance(together, apart)[0] == 0 and losses == others
    assert len(set(losses)) == 3
