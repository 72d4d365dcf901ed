"""How fast the training step is, and what it is made of: JSON to stdout, on CPU, GPU and TPU alike.

    python -m benchmarks.step_time --config=configs/digits.py --steps=20 --repeats=3 --output=FILE.json

Images are random and resident, so that nothing but the step is timed. images/s is the median over the repeats of
`steps` steps (in calls of train.steps_per_call) dispatched back to back and waited for once. The share of augmentation
is the time of crop and augmentation of both views alone, mapped the same way, over the time of a step. FLOPs, bytes and
planned memory are what `moco_jax/costs.py` says of a run.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import output
from moco_jax import config
from moco_jax.cli import flags

NAMED = {
    "steps": (20, "steps per repeat"),
    "repeats": (3, "repeats; the median counts"),
    "output": (None, "file for the JSON, besides stdout"),
}


class Program(NamedTuple):
    """A compiled step, and what it is called with."""

    parts: Any  # assembly.Parts
    steps: int  # of a call
    call: Any
    compile_seconds: float
    batch: Any
    data: Any


def parts_of(run_config: config.Config) -> Any:
    """The parts of a run on random images: four batches of them, 4,096 at most."""
    import numpy as np

    from moco_jax import assembly
    from moco_jax.data.sources import ArraySource

    side, channels = run_config.views.size, len(run_config.data.mean)
    count = max(run_config.batch_size, min(4 * run_config.batch_size, 4096))
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)
    train = dataclasses.replace(run_config.train, steps_per_call=1)  # a CPU refuses more, which scan here all the same
    return assembly.assemble(dataclasses.replace(run_config, train=train), source=ArraySource(images, name="random"))


def batch_of(parts: Any, steps: int, seed: int = 1) -> Any:
    """Rows for a call of so many steps, on the host: ids (steps, n, 2)."""
    import numpy as np

    from moco_jax import parallel

    rows = len(parallel.positions(parts.config.batch_size))
    ids = np.random.default_rng(seed).integers(0, len(parts.source), (steps, rows, 2))
    return {"ids": ids.astype(np.int32)}


def compiled(run_config: config.Config) -> Program:
    """The step of a config, train.steps_per_call of them in a call, compiled for the devices at hand."""
    from moco_jax import parallel

    parts, steps = parts_of(run_config), run_config.train.steps_per_call
    data = parallel.put_data({"images": parts.source.source.images})
    batch = parallel.put_batch(batch_of(parts, steps))
    step = parts.mechanism.step
    mapped: Any = parallel.mapped(parallel.call_of(step) if steps == 1 else parallel.scanned(step))
    return Program(
        parts, steps, *_compiled(mapped.lower(parallel.abstract(parts.mechanism.init), batch, data)), batch, data
    )


def ready(run_config: config.Config) -> tuple[Any, Callable[[int], Any]]:
    """The parts of a run whose views are there already, as floats, and (steps) -> host rows of a call of so many."""
    import numpy as np

    from moco_jax import assembly, parallel
    from moco_jax.data.sources import ArraySource
    from moco_jax.views.recipes import Crop, ViewRecipe

    side, channels, count = run_config.views.size, len(run_config.data.mean), run_config.batch_size
    images = np.random.default_rng(0).random((2 * count, side, side, channels), np.float32)
    given = dataclasses.replace(run_config, data=dataclasses.replace(run_config.data, range=(0.0, 1.0)))
    plain = (ViewRecipe(Crop((1.0, 1.0)), ()),) * 2
    parts = assembly.assemble(given, source=ArraySource(images, name="random"), recipe=plain)
    rows = parallel.positions(count)

    def views(steps: int) -> Any:
        raw = tuple(
            np.stack([images[view * count + (rows + step) % count] for step in range(steps)]) for view in (0, 1)
        )
        return batch_of(parts, steps) | {"raw": raw}

    return parts, views


def on_ready_views(run_config: config.Config) -> Program:
    """The step on two views that are there already: what it costs without crop and augmentation."""
    from moco_jax import parallel

    parts, views = ready(run_config)
    batch = parallel.put_batch(views(1))
    lowered = parallel.lowered(parts.mechanism.step, parallel.abstract(parts.mechanism.init), batch, {})
    return Program(parts, 1, *_compiled(lowered), batch, {})


def _compiled(lowered: Any) -> tuple[Any, float]:
    """A lowered program compiled, and the seconds of that alone."""
    began = time.perf_counter()
    return lowered.compile(), time.perf_counter() - began


def runner(program: Program) -> Callable[[int], None]:
    """(calls): dispatch so many, and wait for the last; the state goes on from one to the next."""
    import jax

    from moco_jax import parallel

    state = parallel.born(program.parts.mechanism.init)

    def go(calls: int) -> None:
        nonlocal state
        for _ in range(calls):
            state, _ = program.call(state, program.batch, program.data)
            if parallel.on_cpu():  # as `parallel.map_step`: collectives of several calls can deadlock
                jax.block_until_ready(state)
        jax.block_until_ready(state)

    return go


def timed(program: Program, *, calls: int, repeats: int) -> list[float]:
    """Seconds of a step in each repeat of so many calls, after two of them."""
    go = runner(program)
    go(2)
    return [_seconds(lambda: go(calls)) / (calls * program.steps) for _ in range(repeats)]


def measure(run_config: config.Config, *, steps: int, repeats: int) -> dict[str, Any]:
    """All figures of one config on the devices at hand."""
    program = compiled(run_config)
    found = pace(program, timed(program, calls=max(1, steps // program.steps), repeats=repeats))
    return found | counted(program, step_seconds=found["step_milliseconds"] / 1e3, repeats=repeats)


def pace(program: Program, seconds: list[float]) -> dict[str, Any]:
    """What is said at once of a program that took so many seconds a step in each repeat."""
    import jax

    from moco_jax import costs, parallel

    parts, step_seconds = program.parts, statistics.median(seconds)
    memory = costs.memory_of(program.call, parts, program.data)
    return {
        "devices": parallel.describe(),
        "jax": jax.__version__,
        "encoder": parts.encoder.label,
        "batch_size": parts.config.batch_size,
        "steps_per_call": program.steps,
        "images_per_second": parts.config.batch_size / step_seconds,
        "step_milliseconds": 1e3 * step_seconds,
        "spread_milliseconds": [1e3 * min(seconds), 1e3 * max(seconds)],
        "compile_seconds": program.compile_seconds,
        "planned_bytes_per_device": memory.peak if memory else None,
    }


def counted(program: Program, *, step_seconds: float, repeats: int) -> dict[str, Any]:
    """What takes longer to find out: it lowers the step once more, and compiles crop and augmentation alone."""
    from moco_jax import costs

    parts = program.parts
    return {
        "augmentation_share": views_seconds(program, repeats) / step_seconds,
        "flops_per_image": costs.flops_per_image(parts, program.batch, program.data),
        # XLA counts the body of a loop once, so that of several steps is of one.
        "bytes_per_image": costs.bytes_per_image(program.call, parts.config.batch_size),
    }


def views_seconds(program: Program, repeats: int) -> float:
    """Seconds of cropping and augmenting every view of a batch: the median of the repeats."""
    import jax

    from moco_jax import parallel
    from moco_jax.core import axis, randomness

    parts = program.parts

    def views(step: Any, batch: Any, data: Any) -> Any:
        rows = jax.tree.map(lambda a: a[0], batch)
        positions = axis.here(rows["ids"].shape[0])
        raw = parts.views.raw(rows, data, positions, randomness.key(0, step, randomness.CROP))
        key = randomness.key(0, step, randomness.AUGMENT)
        return [parts.views.augment(x, positions, key, view) for view, x in enumerate(raw)]

    mapped = parallel.map_rows(views)

    def go(calls: int = 1) -> None:
        out = None
        for step in range(calls):
            out = mapped(step, program.batch, program.data)
        jax.block_until_ready(out)

    go()
    calls = max(1, min(20, round(0.2 / max(_seconds(go), 1e-4))))
    return statistics.median(_seconds(lambda: go(calls)) / calls for _ in range(repeats))


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> int:
    """Measure what the flags say."""
    page, named = flags.parse(sys.argv[1:], page="digits", named=NAMED, usage=__doc__ or "")
    flags.prepare_environment()
    found = measure(config.read(page), steps=named["steps"], repeats=named["repeats"])
    output.keep(found, named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
