"""How fast the training step is, and what it is made of: JSON to stdout, on CPU, GPU and TPU alike.

    python -m benchmarks.step_time --config=configs/digits.py --steps=20 --repeats=3 --output=FILE.json

Images are random and resident, so that nothing but the step is timed. images/s is the median over the repeats of
`steps` steps dispatched back to back and waited for once. The share of augmentation is the time of crop and
augmentation of both views alone, mapped the same way, over the time of a step. FLOPs, bytes and planned memory are what
`moco_jax/dry_run.py` says of a run; peak memory is the device's, where it reports one.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import output
from moco_jax import config
from moco_jax.cli import flags

NAMED = {
    "steps": ("20", "steps per repeat"),
    "repeats": ("3", "repeats; the median counts"),
    "output": (None, "file for the JSON, besides stdout"),
}


def measure(run_config: config.Config, *, steps: int, repeats: int) -> dict[str, Any]:
    """All figures of one config on the devices at hand."""
    import jax
    import numpy as np

    from moco_jax import assembly, dry_run, parallel
    from moco_jax.data.sources import ArraySource

    channels = len(run_config.data.mean)
    count = max(2 * run_config.batch_size, 4 * (run_config.queue.size or 0) if run_config.queue else 0)
    side = run_config.views.size
    images = np.random.default_rng(0).integers(0, 256, (min(count, 4096), side, side, channels), np.uint8)
    parts = assembly.assemble(run_config, source=ArraySource(images, name="random"))
    data = parallel.put_data({"images": images})
    rows = np.random.default_rng(1).integers(0, len(images), (len(parallel.positions(run_config.batch_size)), 2))
    batch = parallel.put_batch({"ids": rows.astype(np.int32)[None]})

    call, compile_seconds = dry_run.compile_call(parts, batch, data)
    state, _ = jax.block_until_ready(call(parallel.born(parts.mechanism.init), batch, data))

    def go() -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = call(state, batch, data)
        jax.block_until_ready(state)

    step_seconds = statistics.median(_timed(go)[1] / steps for _ in range(repeats))
    views_seconds = _views_seconds(parts, batch, data, steps, repeats)
    memory = dry_run.memory_of(call, parts, data)
    return {
        "devices": parallel.describe(),
        "jax": jax.__version__,
        "encoder": parts.encoder.label,
        "batch_size": run_config.batch_size,
        "images_per_second": run_config.batch_size / step_seconds,
        "step_milliseconds": 1e3 * step_seconds,
        "compile_seconds": compile_seconds,
        "augmentation_share": views_seconds / step_seconds,
        "flops_per_image": dry_run.flops_per_image(parts, batch, data),
        "bytes_per_image": dry_run.bytes_per_image(call, run_config.batch_size),
        "planned_bytes_per_device": memory.peak if memory else None,
        "peak_bytes_per_device": parallel.memory_stats().get("peak_bytes_in_use"),
    }


def _views_seconds(parts: Any, batch: Any, data: Any, steps: int, repeats: int) -> float:
    """Seconds of cropping and augmenting every view of a batch."""
    import jax

    from moco_jax import parallel
    from moco_jax.core import axis, randomness

    def views(step: Any, batch: Any, data: Any) -> Any:
        rows = jax.tree.map(lambda a: a[0], batch)
        positions = axis.here(rows["ids"].shape[0])
        raw = parts.views.raw(rows, data, positions, randomness.key(0, step, randomness.CROP))
        key = randomness.key(0, step, randomness.AUGMENT)
        return [parts.views.augment(x, positions, key, view) for view, x in enumerate(raw)]

    mapped = parallel.map_rows(views)

    def go() -> None:
        out = None
        for step in range(steps):
            out = mapped(step, batch, data)
        jax.block_until_ready(out)

    go()
    return statistics.median(_timed(go)[1] / steps for _ in range(repeats))


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    out = function()
    return out, time.perf_counter() - start


def main() -> int:
    """Measure what the flags say."""
    page, named = flags.parse(sys.argv[1:], page="digits", named=NAMED, usage=__doc__ or "")
    flags.prepare_environment()
    figures = measure(config.read(page), steps=int(named["steps"]), repeats=int(named["repeats"]))
    output.keep(figures, named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
