"""What it costs that a step which is not finite changes nothing: the step with the guard and without, as JSON.

    python -m benchmarks.guard --config=configs/digits.py --steps=10 --repeats=15 --output=FILE.json

Both are compiled from the same config and timed in turn on random images; the ratio is the median over the repeats of
one over the other, with the quartiles beside it; on a busy CPU processor time says more than the clock. Without:
`core.guard.finite` says yes, which XLA folds away.
"""

import statistics
import sys
import time
from typing import Any

from benchmarks import output
from moco_jax import config
from moco_jax.cli import flags

NAMED = {
    "steps": (10, "steps per repeat"),
    "repeats": (15, "repeats of both, in turn"),
    "output": (None, "file for the JSON, besides stdout"),
}


def measure(run_config: config.Config, *, steps: int, repeats: int) -> dict[str, Any]:
    """The ratio of times and both in milliseconds; memory that the compiled calls plan for, bytes that they move."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from moco_jax import assembly, costs, parallel
    from moco_jax.core import guard
    from moco_jax.data.sources import ArraySource

    side, channels = run_config.views.size, len(run_config.data.mean)
    images = np.random.default_rng(0).integers(0, 256, (2 * run_config.batch_size, side, side, channels), np.uint8)
    rows = np.random.default_rng(1).permutation(len(images))[: run_config.batch_size]
    batch = parallel.put_batch({"ids": np.stack([rows, rows], 1).astype(np.int32)[None]})
    data = parallel.put_data({"images": images})
    real = guard.finite, guard.anew
    calls, planned, moved = {}, {}, {}
    for name in ("with", "without"):
        if name == "without":
            guard.finite, guard.anew = (lambda _: jnp.bool_(True)), (lambda tree: tree)
        try:
            parts = assembly.assemble(run_config, source=ArraySource(images, name="random"))
            calls[name], _ = costs.compile_call(parts, batch, data)
        finally:
            guard.finite, guard.anew = real
        memory = costs.memory_of(calls[name], parts, data)
        planned[name] = memory.peak if memory else None
        moved[name] = costs.bytes_per_image(calls[name], run_config.batch_size)
    states = {name: call(parallel.born(parts.mechanism.init), batch, data)[0] for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats):
        for name in ("with", "without") if repeat % 2 else ("without", "with"):
            begun, used = time.perf_counter(), time.process_time()
            for _ in range(steps):
                states[name], metrics = calls[name](states[name], batch, data)
            jax.block_until_ready(states[name])
            seconds[name].append((time.perf_counter() - begun) / steps)
            processor[name].append((time.process_time() - used) / steps)
            assert float(metrics["skipped"][-1]) == 0
    return {
        "devices": parallel.describe(),
        "jax": jax.__version__,
        "encoder": parts.encoder.label,
        "batch_size": run_config.batch_size,
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "ratio": _ratio(seconds),
        "ratio of processor time": _ratio(processor),
        "planned_bytes": planned,
        "bytes_per_image": moved,
    }


def _ratio(times: dict[str, list[float]]) -> dict[str, float]:
    found = [a / b for a, b in zip(times["with"], times["without"], strict=True)]
    return dict(zip(("lower quartile", "median", "upper quartile"), statistics.quantiles(found, n=4), strict=True))


def main() -> int:
    """Measure what the flags say."""
    return flags.run(_run, sys.argv[1:])


def _run(argv: list[str]) -> int:
    page, named = flags.parse(argv, page="digits", named=NAMED, usage=__doc__ or "")
    flags.prepare_environment()
    output.keep(measure(config.read(page), steps=named["steps"], repeats=named["repeats"]), named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
