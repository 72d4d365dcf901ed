"""Devices and processes, and nothing else: the only file that says pmap, mesh, device or process.

The step is written for one device (`mechanisms/`) and mapped here. The state stays an ordinary replicated pytree: it
goes in and comes out without a device axis, and is born in place on every device, so that one compile serves and a
donated buffer is never shared.
"""

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moco_jax import launchers
from moco_jax.config import ConfigError, unknown
from moco_jax.core.axis import AXIS

Step = Callable[[Any, Any, Any], tuple[Any, dict[str, jax.Array]]]


def start(heartbeat_seconds: int = 60) -> None:
    """Join the other processes of a run, if there are any; before any other use of JAX.

    Slurm, GKE, TPU pods and Open MPI are detected by JAX, and `launchers` says which GPUs are this process's. Elsewhere
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. Raises ConfigError where only some of the
    three are there or they do not fit, nothing says which GPUs are whose, or JAX finds no device.

    A process that gives no sign for heartbeat_seconds is dead: JAX then ends the others, which would wait for it.
    """
    seconds: dict[str, Any] = dict.fromkeys(
        ("heartbeat_timeout_seconds", "shutdown_timeout_seconds"), heartbeat_seconds
    )
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if len(given) == len(names):
        launchers.check_given(given)
        address, count, index = given.values()
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=int(count),
            process_id=int(index),
            local_device_ids=launchers.local_device_ids(),
            **seconds,
        )
    elif given:
        raise ConfigError(
            f"{', '.join(given)} without {', '.join(n for n in names if n not in given)}: set all or none"
        )
    elif launchers.several_processes():
        jax.distributed.initialize(local_device_ids=launchers.local_device_ids(), **seconds)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for a known backend without hardware
        asked, said = os.environ.get("JAX_PLATFORMS", ""), str(error).splitlines()[:1]
        raise ConfigError(
            f"JAX finds no device by JAX_PLATFORMS={asked!r}{f' ({said[0]})' if said else ''}: set it to what is here, "
            "such as cpu, or leave it out"
        ) from None


def left(status: int, said: str = "") -> int:
    """The status of a program that ends with an error; one process of several says what is left to say, and ends.

    It would wait for the others to end, and they in a collective for it; so they are told, as of one that died.
    """
    if jax.distributed.is_initialized():
        with contextlib.suppress(OSError):  # whoever read it may be gone
            sys.stderr.write(said)
            sys.stdout.flush()
            sys.stderr.flush()
        if is_first_process():
            time.sleep(1)  # the others have its error as well, often, and their own status
        os._exit(status)
    return status


def lost_peer(error: Exception) -> str | None:
    """What to say where `error` is of a collective whose other processes are gone, before JAX itself noticed it."""
    # Gloo between CPUs; NCCL calls it a "remote process exited or there was a network error".
    lost = re.search(r"\bGloo\b|remote process exited|Connection (reset|closed|refused)", str(error))
    if not (lost and isinstance(error, jax.errors.JaxRuntimeError)):
        return None
    return (
        f"another process of this run has ended or is out of reach ({' '.join(str(error).split())}): see its output; "
        "the same command in all processes goes on from the newest checkpoint"
    )


def devices() -> list[jax.Device]:
    """All devices, processes in order: the order of rows in the global batch."""
    return [d for process in range(jax.process_count()) for d in jax.local_devices(process)]


def device_count() -> int:
    """Devices over all processes."""
    return jax.device_count()


def process_count() -> int:
    """Processes of the run."""
    return jax.process_count()


def host_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_stats() -> dict[str, int]:
    """What the first device of this process says of its memory, such as bytes_limit; empty where it does not."""
    return jax.local_devices()[0].memory_stats() or {}


def memory_limit() -> int | None:
    """Bytes that a device of this process may hold; on CPU its share of the host's; None where nobody says."""
    if on_cpu() and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return memory_stats().get("bytes_limit")


def preempted(call: int) -> bool:
    """Whether the processes agreed to stop at their `call`, counted by each; JAX notes a SIGTERM to any of them."""
    return bool(multihost_utils.reached_preemption_sync_point(call))


def first_says(answer: bool) -> bool:
    """What the first process says, in all of them: whatever is read from a file."""
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(answer))) if jax.process_count() > 1 else answer


def is_first_process() -> bool:
    """Whether this process writes logs and reports."""
    return jax.process_index() == 0


def on_cpu() -> bool:
    """Whether the devices are CPUs."""
    return jax.default_backend() == "cpu"


def describe() -> str:
    """The devices in words, such as "8 x NVIDIA H100 in 1 process"."""
    kinds = sorted({d.device_kind for d in jax.devices()})
    processes = jax.process_count()
    return f"{jax.device_count()} x {', '.join(kinds)} in {processes} process{'es' if processes > 1 else ''}"


def positions(batch_size: int) -> np.ndarray:
    """Global batch positions of this process's rows, in order: (local rows,) int64."""
    per_device = batch_size // jax.device_count()
    own = [i for i, d in enumerate(devices()) if d.process_index == jax.process_index()]
    return (np.asarray(own)[:, None] * per_device + np.arange(per_device)[None, :]).reshape(-1)


def replicated(over: Sequence[jax.Device] | None = None) -> NamedSharding:
    """The sharding of a state: a copy on every device (or on those of `over`)."""
    return NamedSharding(Mesh(np.asarray(over or devices()), (AXIS,)), P())


def born(init: Callable[..., Any], over: Sequence[jax.Device] | None = None, *given: Any) -> Any:
    """init(*given) made on all devices at once, replicated; its buffers are nobody else's, so they may be donated."""
    return jax.jit(init, out_shardings=replicated(over))(*given)


def abstract(init: Callable[..., Any]) -> Any:
    """Shapes, dtypes and sharding of what `born(init)` makes, for a restore to the same place."""
    sharding = replicated()
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), jax.eval_shape(init))


def map_step(step: Step, *, steps_per_call: int = 1) -> Step:
    """The per-device step over all devices: (state, batch, data) -> (state, metrics), state donated.

    Batch leaves are (local devices, steps_per_call, n, ...); metrics leaves come out as (steps_per_call,). On
    accelerators the dispatched function is a scan.
    """
    if on_cpu() and steps_per_call > 1:
        raise ConfigError(
            f"train.steps_per_call {steps_per_call} is for GPUs and TPUs; XLA on CPU runs convolution gradients "
            "inside a scan some 30 times slower: use 1"
        )

    call = mapped(call_of(step))

    def one_at_a_time(state: Any, batch: Any, data: Any) -> tuple[Any, dict[str, jax.Array]]:
        return jax.block_until_ready(call(state, batch, data))

    # On CPU nothing is gained by running ahead, an interrupt would wait for all of it, and collectives of several
    # devices, which share one pool of threads, can deadlock.
    return one_at_a_time if on_cpu() else call


def call_of(step: Step) -> Step:
    """The function that is dispatched: some steps on one device, batch leaves (steps, n, ...)."""

    def one(state: Any, batch: Any, data: Any) -> tuple[Any, dict[str, jax.Array]]:
        state, metrics = step(state, jax.tree.map(lambda a: a[0], batch), data)
        return state, jax.tree.map(lambda a: a[None], metrics)

    return one if on_cpu() else scanned(step)


def scanned(step: Step) -> Step:
    """Steps one after the other on one device, in one program: batch leaves (steps, n, ...), metrics (steps,).

    A loop also for one step, so that every number of steps per call compiles to the same kernels, and gives the same
    bits.
    """

    def several(state: Any, batch: Any, data: Any) -> tuple[Any, dict[str, jax.Array]]:
        def one(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
            # XLA would write a loop of one turn out, and fuse it otherwise, were there nothing in it that it may not
            # touch: a draw of its own generator, which has a state. The number is for nobody.
            state, _ = lax.optimization_barrier((state, lax.rng_uniform(jnp.float32(0), jnp.float32(1), ())))
            return step(state, batch, data)

        return lax.scan(one, state, batch)

    return several


def lowered(step: Step, state: Any, batch: Any, data: Any) -> Any:
    """The dispatched function lowered for arrays or their shapes: to compile it, and to ask what it costs."""
    call: Any = mapped(call_of(step))
    return call.lower(state, batch, data)


def mapped(function: Step, over: Sequence[jax.Device] | None = None) -> Step:
    """`function(state, batch, data)` by pmap; batch leaves begin with the devices. `over`: some of one process."""
    # axis_size refuses a short batch, which would silently move the state to fewer devices.
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=(None, None),
        donate_argnums=0,
        axis_size=len(over) if over else jax.device_count(),
        devices=over,
    )


def map_rows(function: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """`function(state, batch, data)` over all devices, row by row: outputs keep the device axis, nothing is donated."""
    return jax.pmap(function, axis_name=AXIS, in_axes=(None, 0, None), out_axes=0, axis_size=jax.device_count())


def put_batch(batch: Any) -> Any:
    """This process's rows, (steps, local rows, ...) on the host, as (local devices, steps, n, ...) on its devices."""
    local = jax.local_devices()
    sharding = NamedSharding(Mesh(np.asarray(local), (AXIS,)), P(AXIS))

    def put(a: np.ndarray) -> jax.Array:
        parts = a.reshape(a.shape[0], len(local), a.shape[1] // len(local), *a.shape[2:])
        return jax.device_put(np.moveaxis(parts, 1, 0), sharding)

    return jax.tree.map(put, batch)


def put_data(data: Any) -> Any:
    """Resident arrays, the same on every process, copied to every device once; empty stays empty."""
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, replicated(), lambda index: a[index]), data)


def local(state: Any) -> Any:
    """A replicated state as arrays on this process's devices alone, for work that processes do apart."""
    sharding = NamedSharding(Mesh(np.asarray(jax.local_devices()), (AXIS,)), P())

    def wrap(a: jax.Array) -> jax.Array:
        return jax.make_array_from_single_device_arrays(a.shape, sharding, [s.data for s in a.addressable_shards])

    return jax.tree.map(wrap, state)


def put_rows(rows: np.ndarray) -> jax.Array:
    """Rows (n, ...) over this process's devices, or on all of them where n does not divide."""
    mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
    spec = P(AXIS) if len(rows) % jax.local_device_count() == 0 else P()
    return jax.device_put(rows, NamedSharding(mesh, spec))


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype that model.dtype means here: auto is bfloat16 on GPU and TPU, float32 on CPU."""
    if name == "auto":
        name = "float32" if on_cpu() else "bfloat16"
    if name not in ("float32", "bfloat16", "float64"):
        raise unknown("model.dtype", name, ("auto", "float32", "bfloat16", "float64"))
    if name == "float64" and not jax.config.read("jax_enable_x64"):
        raise ConfigError("model.dtype float64 needs JAX in double precision: set JAX_ENABLE_X64=1")
    return jnp.dtype(name)


def barrier(name: str) -> None:
    """Wait until every process is here; nothing to do for one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def wait(tree: Any) -> None:
    """Block until every leaf is computed."""
    jax.block_until_ready(tree)


def host(tree: Any) -> Any:
    """One copy of every replicated leaf, as numpy on this host; numpy's own stay as they are."""
    return jax.tree.map(lambda a: np.asarray(a.addressable_shards[0].data) if isinstance(a, jax.Array) else a, tree)


def gathered(value: int) -> list[int]:
    """What every process gives, the first one's first; all call it together. Nothing to do for one."""
    if jax.process_count() == 1:
        return [int(value)]
    return [int(v) for v in multihost_utils.process_allgather(np.asarray(value, np.int32))]


def check_identical(state: Any) -> None:
    """Raises RuntimeError where copies of the state differ between devices or processes.

    A replicated output that differs between devices is otherwise returned, and saved, without an error. One device has
    nothing to compare, and nothing of it is fetched.
    """
    several = jax.process_count() > 1
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        shards = leaf.addressable_shards
        if len(shards) == 1 and not several:
            continue
        copies = (np.asarray(s.data).reshape(-1).view(np.uint8) for s in shards)
        first = next(copies)
        if not all(np.array_equal(first, c) for c in copies):
            raise RuntimeError(f"state{jax.tree_util.keystr(path)} differs between devices; it must be replicated")
        if several:
            digest.update(first.data)
    if several:
        multihost_utils.assert_equal(np.frombuffer(digest.digest(), np.uint8), "the state differs between processes")


def lower(function: Step, shapes: tuple[Any, Any, Any], *, platform: str) -> str:
    """The mapped step lowered for hardware that need not be here ("tpu", "cuda"): its StableHLO text."""
    traced = jax.jit(mapped(function), donate_argnums=0).trace(*shapes)
    return traced.lower(lowering_platforms=(platform,)).as_text()
