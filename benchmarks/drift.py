"""How far equal runs drift apart when only rounding differs: one device against several, and against micro-batches.

    python -m benchmarks.drift --config=digits --config.model.width=16 --output=benchmarks/results/drift.json

The shipped step from the same initial values on the same images, on one CPU device, on `devices` fake ones, and on one
in micro-batches, in float32 and in bfloat16. In exact arithmetic all three are the same run (float64: 1e-10 after five
steps, `tests/test_invariance.py`). Differences are relative: of the online parameters and the queue the L2 norm over
that of one device, of the loss the absolute value. Micro-batches change the order of sums and nothing else, on the same
hardware: what they do is the yardstick for what devices do.
"""

import dataclasses
import sys
from typing import Any

import numpy as np

from benchmarks import output
from moco_jax import config
from moco_jax.cli import flags

NAMED = {
    "devices": (8, "fake CPU devices; a micro-batch, and a batch-norm group, are the images of one"),
    "output": (None, "file for the JSON, besides stdout"),
}
STEPS = (1, 3, 10, 30, 100)  # after which the runs are compared
DTYPES = ("float32", "bfloat16")


def measure(
    run_config: config.Config, *, devices: int, steps: tuple[int, ...], dtypes: tuple[str, ...]
) -> dict[str, Any]:
    """{dtype: {other run: {what: relative differences at `steps`}}} and the loss of one device."""
    import jax

    images = run_config.batch_size // devices
    plain = dataclasses.replace(run_config, bn=config.BatchNorm(images))
    # On several devices a micro-batch of that size is all of a device's images; on one device it is a part of them.
    parts = dataclasses.replace(plain, train=dataclasses.replace(plain.train, microbatch_size=images))
    rows: dict[str, Any] = {}
    for dtype in dtypes:
        one = _run(plain, dtype, 1, steps)
        others = {
            f"{devices} devices": _run(plain, dtype, devices, steps),
            f"micro-batches of {images}": _run(parts, dtype, 1, steps),
        }
        rows[dtype] = {name: _differences(other, one) for name, other in others.items()}
        rows[dtype]["loss of one device"] = [o["loss"] for o in one]
    about = {"jax": jax.__version__, "data": run_config.data.dataset, "model": dataclasses.asdict(run_config.model)}
    return about | {"batch_size": run_config.batch_size, "group_size": images, "steps": steps, "rows": rows}


def _run(c: config.Config, dtype: str, devices: int, steps: tuple[int, ...]) -> list[dict[str, Any]]:
    """Online parameters, queue and loss on the host after each of `steps`."""
    import jax

    from moco_jax import assembly, parallel
    from moco_jax.data import loader, order

    c = dataclasses.replace(c, model=dataclasses.replace(c.model, dtype=dtype))
    parts = assembly.assemble(c)
    over = parallel.devices()[:devices]
    data = jax.device_put(loader.resident(parts.source, c.data.workers), parallel.replicated(over))
    mapped = parallel.mapped(parts.mechanism.step, over)
    state, out = parallel.born(parts.mechanism.init, over), []
    for step in range(max(steps)):
        ids = order.ids(c.seed, step, np.arange(c.batch_size), records=len(parts.source), batch_size=c.batch_size)
        state, metrics = jax.block_until_ready(mapped(state, {"ids": ids.reshape(devices, -1, 2)}, data))
        if step + 1 in steps:
            kept = parallel.host({"parameters": state.online.params, "queue": state.memory.queue})
            out.append(kept | {"loss": float(metrics["loss"])})
    return out


def _differences(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """By what is compared: L2 norm of the difference over the L2 norm, at each step."""
    import jax

    def flat(tree: Any) -> np.ndarray:
        return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])

    def relative(a: Any, b: Any) -> float:
        return float(np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b)))

    return {name: [relative(a[name], b[name]) for a, b in zip(ours, theirs, strict=True)] for name in ours[0]}


def main() -> int:
    """Measure what the flags say."""
    page, named = flags.parse(sys.argv[1:], page="digits", named=NAMED, usage=__doc__ or "")
    flags.prepare_environment()
    import jax

    devices = named["devices"]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    output.keep(measure(config.read(page), devices=devices, steps=STEPS, dtypes=DTYPES), named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
