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

# Largest relative distance of what one step leaves, in the Euclidean norm: gradients with weight decay (SGD's buffer
# after a step from zero), and the keys. Float32 on both sides with full products; bfloat16 against float32.
BOUNDS = {"float32": {"gradients": 1e-3, "keys": 1e-3}, "bfloat16": {"gradients": 0.3, "keys": 0.1}}


def check(sizes: Sizes) -> dict[str, Any]:
    """All checks, and whether all held."""
    found = {"against the CPU": against_the_cpu(sizes)} | repeatable(sizes)
    return {"all_hold": all(part["holds"] for part in found.values())} | found


def _config(sizes: Sizes, dtype: str) -> config.Config:
    """The CIFAR-10 step at an eighth of its batch and a quarter of its width, or what is given."""
    changes = {"batch_size": 64, "shuffle.block": 64, "bn.group_size": 8, "model.width": 16} | sizes.demo_changes
    return demo(dataclasses.replace(sizes, demo_changes=changes), **{"model.dtype": dtype})


def _stepper(c: config.Config, device: jax.Device) -> Steps:
    """(host state, steps, steps per dispatch) -> the state that they leave on a device, and their losses."""
    parts, over = step_time.parts_of(c), [device]
    mapped = parallel.mapped(parallel.scanned(parts.mechanism.step), over)
    data = {"images": jax.device_put(parts.source.source.images, parallel.replicated(over))}
    own = jax.jit(lambda s: jax.tree.map(lambda a: a + 0, s), out_shardings=parallel.replicated(over))  # to be donated

    def steps(start: Any, count: int, per_call: int) -> tuple[Any, list[float]]:
        state = own(jax.device_put(start, parallel.replicated(over)))
        ids = step_time.batch_of(parts, count)["ids"][None]  # (1, count, n, 2)
        losses: list[float] = []
        for first in range(0, count, per_call):
            state, metrics = mapped(state, {"ids": ids[:, first : first + per_call]}, data)
            losses += np.asarray(metrics["loss"]).tolist()
        return parallel.host(state), losses

    return steps


def _start(c: config.Config, cpu: jax.Device) -> Any:
    """The state at the start as a CPU draws it: a GPU's normal numbers differ in the last bit."""
    with jax.default_device(cpu):
        return jax.tree.map(np.asarray, jax.jit(step_time.parts_of(c).mechanism.init)())


def against_the_cpu(sizes: Sizes) -> dict[str, Any]:
    """Relative distances of one step here, in float32, TF32 (JAX's default) and bfloat16, to the CPU's in float32."""
    cpu, here = jax.devices("cpu")[0], jax.devices()[0]
    single, half = (_config(sizes, dtype) for dtype in ("float32", "bfloat16"))
    start = _start(single, cpu)
    with jax.default_matmul_precision("highest"):
        reference, losses = _stepper(single, cpu)(start, 1, 1)
        others = {"float32": _stepper(single, here)(start, 1, 1)}
    others["default precision"] = _stepper(single, here)(start, 1, 1)
    others["bfloat16"] = _stepper(half, here)(start, 1, 1)
    out: dict[str, Any] = {
        name: {
            "gradients": _distance(state.optimizer, reference.optimizer),
            "keys": _distance(_written(state), _written(reference)),
            "statistics": _distance(state.online.batch_stats, reference.online.batch_stats),
            "loss": abs(loss[0] - losses[0]) / losses[0],
        }
        for name, (state, loss) in others.items()
    }
    held = [out[name][what] <= bound for name, bounds in BOUNDS.items() for what, bound in bounds.items()]
    return {"holds": all(held), "bounds": BOUNDS} | out


def _written(state: Any) -> Any:
    return state.memory.queue[state.memory.written >= 0]


def _distance(a: Any, b: Any) -> float:
    """|a - b| / |b| over all numbers of two trees."""
    ours, theirs = (np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(t)]) for t in (a, b))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def repeatable(sizes: Sizes) -> dict[str, Any]:
    """Four steps by one, by two and by four per dispatch, and by one again: which leaves differ in any bit?

    Sums in a varying order would show in the second; what they change the first cannot tell from a fault of the loop.
    """
    c = _config(sizes, str(parallel.compute_dtype("auto")))
    start, steps = _start(c, jax.devices("cpu")[0]), _stepper(c, jax.devices()[0])
    one, two, four, again = (steps(start, 4, per_call)[0] for per_call in (1, 2, 4, 1))
    several, twice = sorted({*_differing(one, two), *_differing(one, four)}), _differing(one, again)
    return {
        "one step per dispatch and several": {"holds": not several, "differ": several},
        "the same call twice": {"holds": not twice, "differ": twice},
    }


def _differing(a: Any, b: Any) -> list[str]:
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    return [jax.tree_util.keystr(path) for (path, x), y in pairs if x.tobytes() != y.tobytes()]
