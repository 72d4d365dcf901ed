"""Is what the accelerator computes the step that a CPU computes, and does it compute it twice alike?"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import step_time
from benchmarks.gpu.pages import Sizes, demo
from moco_jax import config, parallel

Steps = Callable[[Any, int, int], tuple[Any, list[float]]]

# Largest relative distance to the CPU's step in float32 of what one step leaves, in the Euclidean norm: the gradients
# (SGD's buffer, after a step from zero) and the keys. With full products both sides differ by the order of sums alone.
FLOAT32 = {"gradients": 1e-3, "keys": 1e-3}
BFLOAT16 = 1.5  # times the distance of the CPU's own step in bfloat16, which at this size is .23 and .010


def check(sizes: Sizes) -> dict[str, Any]:
    """All checks, whether those of them held that must, and whether the same call gives the same bits."""
    found = {"against the CPU": against_the_cpu(sizes), "one step per dispatch and several": chunked(sizes)}
    return (
        {"all_hold": all(part["holds"] for part in found.values())}
        | found
        | {"differ between two runs": repeated(sizes)}
    )


def _config(sizes: Sizes, dtype: str) -> config.Config:
    """The CIFAR-10 step at an eighth of its batch and a quarter of its width, or what is given."""
    changes = {"batch_size": 64, "shuffle.block": 64, "bn.group_size": 8, "model.width": 16} | sizes.demo_changes
    return demo(dataclasses.replace(sizes, demo_changes=changes), **{"model.dtype": dtype})


def _stepper(
    c: config.Config, device: jax.Device, *, loop: bool = True, options: dict[str, Any] | None = None
) -> Steps:
    """(host state, steps, steps per dispatch) -> the state that they leave on a device, and their losses.

    Views are ready, so that no crop's corner rounds otherwise elsewhere. Without `loop` a dispatch is one step, which
    XLA on a CPU runs some 30 times faster. `options` are the compiler's.
    """
    parts, views = step_time.ready(c)
    over, step = [device], parts.mechanism.step

    def one(state: Any, batch: Any, data: Any) -> Any:
        state, metrics = step(state, jax.tree.map(lambda a: a[0], batch), data)
        return state, jax.tree.map(lambda a: a[None], metrics)

    mapped: Any = parallel.mapped(parallel.scanned(step) if loop else one, over)
    place = parallel.replicated(over)
    own = jax.jit(lambda s: jax.tree.map(lambda a: a + 0, s), out_shardings=place)  # to be donated
    compiled: dict[int, Any] = {}

    def steps(start: Any, count: int, per_call: int) -> tuple[Any, list[float]]:
        state, losses = own(jax.device_put(start, place)), []
        for first in range(0, count, per_call):
            batch = jax.tree.map(lambda a, first=first: a[None, first : first + per_call], views(count))
            if per_call not in compiled:
                compiled[per_call] = mapped.lower(state, batch, {}).compile(compiler_options=options)
            state, metrics = compiled[per_call](state, batch, {})
            losses += np.asarray(metrics["loss"]).tolist()
        return parallel.host(state), losses

    return steps


def _start(c: config.Config, cpu: jax.Device) -> Any:
    """The state at the start as a CPU draws it: a GPU's normal numbers differ in the last bit."""
    with jax.default_device(cpu):
        return jax.tree.map(np.asarray, jax.jit(step_time.ready(c)[0].mechanism.init)())


def against_the_cpu(sizes: Sizes) -> dict[str, Any]:
    """Relative distances of one step here, in float32, TF32 (JAX's default) and bfloat16, to the CPU's in float32."""
    cpu, here = jax.devices("cpu")[0], jax.devices()[0]
    single, half = (_config(sizes, dtype) for dtype in ("float32", "bfloat16"))
    start = _start(single, cpu)
    with jax.default_matmul_precision("highest"):
        reference = _stepper(single, cpu, loop=False)(start, 1, 1)
        exact = _stepper(single, here)(start, 1, 1)
    out: dict[str, Any] = {
        "float32": _distances(exact, reference),
        "default precision": _distances(_stepper(single, here)(start, 1, 1), reference),
        "bfloat16": _distances(_stepper(half, here)(start, 1, 1), reference),
        "bfloat16 of the CPU": _distances(_stepper(half, cpu, loop=False)(start, 1, 1), reference),
    }
    bounds = {name: BFLOAT16 * out["bfloat16 of the CPU"][name] for name in FLOAT32}
    held = [out["float32"][name] <= bound for name, bound in FLOAT32.items()]
    held += [out["bfloat16"][name] <= bound for name, bound in bounds.items()]
    return {"holds": all(held), "bounds": {"float32": FLOAT32, "bfloat16": bounds}} | out


def _distances(left: tuple[Any, list[float]], by: tuple[Any, list[float]]) -> dict[str, float]:
    (state, loss), (other, losses) = left, by
    return {
        "gradients": _distance(state.optimizer, other.optimizer),
        "keys": _distance(_written(state), _written(other)),
        "statistics": _distance(state.online.batch_stats, other.online.batch_stats),
        "loss": abs(loss[0] - losses[0]) / losses[0],
    }


def _written(state: Any) -> Any:
    return state.memory.queue[state.memory.written >= 0]


def _distance(a: Any, b: Any) -> float:
    """|a - b| / |b| over all numbers of two trees."""
    ours, theirs = (np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(t)]) for t in (a, b))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def chunked(sizes: Sizes) -> dict[str, Any]:
    """Four steps, by one and by four per dispatch: which leaves differ in any bit?

    Of convolutions only algorithms without atomics are taken here, so that a difference is a fault of the loop.
    """
    c = _config(sizes, str(parallel.compute_dtype("auto")))
    options = {"xla_gpu_exclude_nondeterministic_ops": True}
    start, steps = _start(c, jax.devices("cpu")[0]), _stepper(c, jax.devices()[0], options=options)
    differ = _differing(*(steps(start, 4, per_call)[0] for per_call in (1, 4)))
    return {"holds": not differ, "differ": differ}


def repeated(sizes: Sizes) -> list[str]:
    """Leaves that differ in any bit between two runs of two steps, with whatever algorithms XLA chose."""
    c = _config(sizes, str(parallel.compute_dtype("auto")))
    start, steps = _start(c, jax.devices("cpu")[0]), _stepper(c, jax.devices()[0])
    return _differing(*(steps(start, 2, 1)[0] for _ in range(2)))


def _differing(a: Any, b: Any) -> list[str]:
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    return [jax.tree_util.keystr(path) for (path, x), y in pairs if x.tobytes() != y.tobytes()]
