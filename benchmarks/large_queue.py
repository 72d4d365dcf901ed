"""The loss against a large queue, all logits at once and in chunks of the queue: seconds and memory, as JSON.

    python -m benchmarks.large_queue --timed=65536 --output=benchmarks/results/large_queue.json

Loss and gradient of the queries, as the step takes them, and the measures beside them. Memory is the compiler's plan
of what it works in, beside arguments and results; for a whole step of a small net too. Repeats alternate between the
ways, so that what else the machine does falls on all of them; sizes that are not timed are compiled alone.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import output
from moco_jax.cli import flags
from moco_jax.config import ConfigError

DIM, TEMPERATURE = 128, 0.2
CHUNKS = (4096, 16384, 65536)
BATCH = 128  # of the digits page, whose keys a queue must hold
NAMED = {
    "rows": (256, "queries, of one device"),
    "sizes": ("65536,1048576", "rows of the queue"),
    "chunks": (",".join(map(str, CHUNKS)), "rows compared at once"),
    "timed": ("65536,1048576", "those of the sizes that are run, and not compiled alone"),
    "repeats": (5, "calls of each way, of which the median counts"),
    "output": (None, "file for the JSON, besides stdout"),
}
USAGE = "usage: python -m benchmarks.large_queue [--rows=N] [--sizes=K,...] [--chunks=ROWS,...] [--timed=K,...]"


def measure(
    sizes: Sequence[int],
    *,
    rows: int,
    repeats: int,
    chunks: Sequence[int] = CHUNKS,
    timed: Sequence[int] | None = None,
    dim: int = DIM,
) -> dict[str, Any]:
    """{K: {rows of the queue at once, or "all": figures}} of the loss, for each K of `sizes`; timed None: all."""
    of = {size: _ways(size, chunks) for size in sizes}
    run = sizes if timed is None else timed
    return {str(size): _of_loss(rows, size, dim, of[size], repeats if size in run else 0) for size in sizes}


def steps(sizes: Sequence[int], *, chunks: Sequence[int] = CHUNKS) -> dict[str, Any]:
    """{K: {rows at once: planned bytes}} of a whole step of a small net."""
    return {str(k): {way: _of_step(k, chunk) for way, chunk in _ways(k, chunks).items()} for k in sizes}


def _ways(size: int, chunks: Sequence[int]) -> dict[str, int | None]:
    """All rows at once, and the chunks that are fewer; of a queue that is smaller than these, a quarter."""
    return {"all": None} | {str(c): c for c in ([c for c in chunks if c < size] or [size // 4])}


def loss_of(chunk: int | None) -> Callable[..., Any]:
    """(raw queries (N, C), keys (N, C), queue (K, C)) -> ((loss, measures), gradient of the queries)."""
    import jax
    import jax.numpy as jnp

    from moco_jax.core import chunks, health, losses

    def loss(z: jax.Array, k: jax.Array, queue: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        q = losses.unit(z)
        if chunk is None:
            found = losses.compared(losses.contrast_logits(q, k, queue, TEMPERATURE))
        else:
            found = chunks.compared(q, k, queue, TEMPERATURE, chunk=chunk)
        return jnp.mean(found.info_nce), health.similarities(found, TEMPERATURE)

    return jax.value_and_grad(loss, has_aux=True)


def _of_loss(rows: int, size: int, dim: int, ways: dict[str, int | None], repeats: int) -> dict[str, Any]:
    """Planned bytes of each way, and with repeats above 0 its seconds and its loss."""
    import jax
    import jax.numpy as jnp

    from moco_jax.core.losses import unit

    shapes = [jax.ShapeDtypeStruct((n, dim), jnp.float32) for n in (rows, rows, size)]
    compiled = {way: jax.jit(loss_of(chunk)).lower(*shapes).compile() for way, chunk in ways.items()}
    found: dict[str, Any] = {way: {"planned_bytes": _planned(call)} for way, call in compiled.items()}
    if not repeats:
        return found
    draw = jax.jit(lambda key, n: unit(jax.random.normal(key, (n, dim))), static_argnums=1)
    arrays = [draw(jax.random.key(i), s.shape[0]) for i, s in enumerate(shapes)]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    calls = dict.fromkeys(ways, 1)  # of a repeat: some at once, where one is soon over
    for repeat in range(2 + repeats):  # the first two warm up, and say how many
        for way, call in compiled.items():
            start = time.perf_counter()
            out = [call(*arrays) for _ in range(calls[way])]
            (loss, _), _ = jax.block_until_ready(out)[-1]
            seconds[way].append((time.perf_counter() - start) / calls[way])
            found[way]["loss"] = float(loss)
            if repeat == 1:
                calls[way] = max(1, min(50, round(0.05 / seconds[way][-1])))
    for way, all_of_them in seconds.items():
        counted = all_of_them[2:]
        found[way]["seconds"] = statistics.median(counted)
        found[way]["seconds_least_and_most"] = [min(counted), max(counted)]
    return found


def _of_step(size: int, chunk: int | None) -> int | None:
    """Planned bytes of the digits page's step, of width 4 and with a queue of `size`: what one device works in."""
    import jax
    import numpy as np

    from moco_jax import assembly, config, costs, pages, parallel
    from moco_jax.data.sources import ArraySource

    page = pages.load("digits")
    page.model.width, page.queue.size, page.queue.chunk = 4, size, chunk
    run_config = config.read(page)
    side = run_config.views.size
    source = ArraySource(np.zeros((2 * run_config.batch_size, side, side, 1), np.uint8), name="none")
    parts = assembly.assemble(run_config, source=source)
    local = (len(parallel.positions(run_config.batch_size)), 2)
    batch = jax.eval_shape(lambda: parallel.put_batch({"ids": np.zeros((1, *local), np.int32)}))
    call, _ = costs.compile_call(parts, batch, costs.abstract_images(parts))
    return _planned(call)


def _planned(call: Any) -> int | None:
    """Bytes of temporary arrays; None where the backend does not tell."""
    plan = call.memory_analysis()
    return None if plan is None else int(plan.temp_size_in_bytes)


def main() -> int:
    """Measure what the flags say."""
    return flags.run(_run, sys.argv[1:])


def _run(argv: list[str]) -> int:
    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=f"{USAGE}\n\n{__doc__}")
    flags.prepare_environment()
    import jax

    from moco_jax import parallel

    sizes, chunks, timed = (tuple(map(int, named[name].split(","))) for name in ("sizes", "chunks", "timed"))
    rows, repeats = named["rows"], named["repeats"]
    for size in sizes:  # what the step would refuse, after the loss was measured
        if size < BATCH or any(size % chunk for chunk in chunks if chunk < size):
            raise ConfigError(f"--sizes={size}: take {BATCH} or more, and what --chunks={named['chunks']} divide")
    found = {"devices": parallel.describe(), "jax": jax.__version__, "rows": rows, "dim": DIM, "repeats": repeats}
    found["loss"] = measure(sizes, rows=rows, repeats=repeats, chunks=chunks, timed=timed)
    output.keep(found | {"step": steps(sizes, chunks=chunks)}, named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
