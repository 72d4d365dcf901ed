"""What one card does, in one run of under eight minutes: is the step right, how fast is it, and how fast is PyTorch's.

    python -m benchmarks.gpu_suite --output=FILE.json            needs the package and JAX; for PyTorch's side torch
    python -m benchmarks.gpu_suite --sizes=shrunken              everything small, on a CPU, in minutes

Correctness first, then speed, then a table; the JSON is rewritten after every section, so that what was measured stays.
A section that would begin after --seconds is left out, and named. benchmarks/README.md says what each one is.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import step_time
from benchmarks.gpu import pages
from moco_jax.cli import flags

NAMED = {
    "output": (None, "file for the JSON"),
    "seconds": (440.0, "no section begins after so many"),
    "sections": (None, "only these, separated by commas"),
    "sizes": ("full", "full, or shrunken: everything small, as on a CPU"),
}
BYTES, FLOPS = 448e6, 32.5e9  # per image of MoCo ResNet-50 at 224 pixels: arithmetic, with batch norm not fused away
WORKERS = 6  # programs that compile at once


@dataclasses.dataclass
class Run:
    """What sections share: sizes, the clock, and programs that compile while others are looked at."""

    sizes: pages.Sizes
    deadline: float
    programs: dict[str, "Future[step_time.Program]"] = dataclasses.field(default_factory=dict)

    def late(self) -> bool:
        return time.perf_counter() > self.deadline


def compile_all(run: Run, pool: ThreadPoolExecutor, names: list[str]) -> None:
    """Begin to compile what the sections of `names` need, most used first; XLA compiles outside of Python's lock."""
    s = run.sizes
    beside, small = pages.imagenet(s, batch_size=s.beside), pages.demo(s)
    epoch = pages.demo(s, **{"train.steps_per_call": s.demo_steps})
    one = (f"batch {s.beside}", step_time.compiled, beside)
    other = [(f"batch {b}", step_time.compiled, pages.imagenet(s, batch_size=b)) for b in s.batches if b != s.beside]
    ready = [
        (name, step_time.on_ready_views, pages.one_group(c)) for name, c in (("ready", beside), ("demo ready", small))
    ]
    needed = {
        "steps": [one, *other],
        "beside_pytorch": ready,
        "demo": [("demo", step_time.compiled, epoch), ("demo, one step", step_time.compiled, small)],
        "profile": [one],
        "compiling": [one],
    }
    for name, make, c in (program for section in names for program in needed.get(section, [])):
        if name not in run.programs:
            run.programs[name] = pool.submit(make, c)


def timed(run: Run, name: str, *, costs: bool = False) -> dict[str, Any]:
    """How fast a program is, each repeat as long as the sizes ask for; with `costs` what it is made of, too."""
    program = run.programs[name].result()
    one = min(step_time.timed(program, calls=1, repeats=2)) * program.steps
    calls = max(1, round(run.sizes.repeat_seconds / max(one, 1e-6)))
    repeats = run.sizes.repeats
    found = step_time.pace(program, step_time.timed(program, calls=calls, repeats=repeats))
    if costs:
        found |= step_time.costs(program, step_seconds=found["step_milliseconds"] / 1e3, repeats=repeats)
    return found


def ceilings(run: Run) -> dict[str, Any]:
    """What the card copies and multiplies."""
    from benchmarks.gpu import alone

    return alone.ceilings(run.sizes)


def correct(run: Run) -> dict[str, Any]:
    """The step against a CPU's, one step per dispatch against several, and the same call twice."""
    from benchmarks.gpu import correct

    return correct.check(run.sizes)


def steps(run: Run) -> dict[str, Any]:
    """ResNet-50 at every batch, the rate and the fixed cost that fit them, and its program against arithmetic."""
    from benchmarks.gpu import alone, program

    out: dict[str, Any] = {}
    batches = [run.sizes.beside, *(b for b in run.sizes.batches if b != run.sizes.beside)]
    measured = {}
    for batch in batches:
        if measured and run.late():
            break
        measured[batch] = timed(run, f"batch {batch}", costs=batch == run.sizes.beside)
    out = {f"batch {batch}": measured[batch] for batch in sorted(measured)}
    if len(measured) > 1:
        order = sorted(measured)
        out["fit"] = alone.fit(order, [measured[b]["step_milliseconds"] for b in order])
    found = program.read(run.programs[f"batch {run.sizes.beside}"].result().call.as_text(), run.sizes.beside)
    flops = measured[run.sizes.beside]["flops_per_image"]
    found |= {"bytes_over_448_mb": 1e6 * found["mb_per_image"] / BYTES, "flops_over_32.5_g": flops and flops / FLOPS}
    return out | {"program": found}


def demo(run: Run) -> dict[str, Any]:
    """The CIFAR-10 step, an epoch per dispatch and one step per dispatch."""
    return {"demo": timed(run, "demo", costs=True), "demo, one step": timed(run, "demo, one step")}


def beside_pytorch(run: Run) -> dict[str, Any]:
    """Our step and PyTorch's on views that are ready, of plain batch norm, and the ratio to its fastest variant."""
    from importlib.util import find_spec

    from benchmarks.gpu import torch_step

    if find_spec("torch") is None:
        return {"not measured": "torch is not installed"}
    out: dict[str, Any] = {}
    for name, ready, page in (("ResNet-50", "ready", pages.imagenet), ("demo", "demo ready", pages.demo)):
        changes = {"batch_size": run.sizes.beside} if page is pages.imagenet else {}
        ours = timed(run, ready)
        theirs = torch_step.measure(page(run.sizes, **changes), run.sizes, done=run.late)
        rates = [v["images_per_second"] for k, v in theirs.items() if "grouped" not in k and "images_per_second" in v]
        ratio = ours["images_per_second"] / max(rates) if rates else None
        out[name] = {"ours on ready views, plain batch norm": ours, "PyTorch": theirs, "ours over its fastest": ratio}
    return out


def parts(run: Run) -> dict[str, Any]:
    """The loss at every K, batch norm, and the update, each alone. Augmentation alone is beside each step."""
    from benchmarks import large_queue
    from benchmarks.gpu import alone

    s = run.sizes
    return {
        "loss": large_queue.measure(s.queues, rows=s.beside, repeats=s.repeats),
        "batch norm and ReLU, forward and backward": alone.batch_norm(s),
        "SGD and the target's average": alone.update(s),
    }


def compiling(run: Run) -> dict[str, Any]:
    """Seconds to compile the step, and to find it in the cache on disk."""
    import jax

    c = pages.imagenet(run.sizes, batch_size=run.sizes.beside)
    cold = run.programs[f"batch {run.sizes.beside}"].result().compile_seconds
    jax.clear_caches()
    return {"cold_seconds, with others at once": cold, "cached_seconds": step_time.compiled(c).compile_seconds}


def profile(run: Run) -> dict[str, Any]:
    """The ten kernels that take most of a step."""
    from benchmarks.gpu import alone

    program = run.programs[f"batch {run.sizes.beside}"].result()
    step_time.timed(program, calls=1, repeats=1)
    with tempfile.TemporaryDirectory() as folder:
        return alone.top_kernels(lambda: step_time.timed(program, calls=1, repeats=1), folder)


SECTIONS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "ceilings": ceilings,
    "correct": correct,
    "steps": steps,
    "beside_pytorch": beside_pytorch,
    "demo": demo,
    "parts": parts,
    "profile": profile,
    "compiling": compiling,
}


def measure(sizes: pages.Sizes, *, seconds: float, names: list[str], keep: Callable[[dict[str, Any]], None]) -> Any:
    """The sections of `names` in their order; `keep` receives what is known after each."""
    import jax

    from moco_jax import parallel

    began = time.perf_counter()
    run = Run(sizes, began + seconds)
    device = jax.devices()[0]
    found: dict[str, Any] = {"card": parallel.describe(), "jax": jax.__version__, "platform": device.platform}
    found |= {"full_size": sizes == pages.FULL, "not_measured": [], "seconds": {}}
    with ThreadPoolExecutor(WORKERS) as pool:
        compile_all(run, pool, names)
        for name in names:
            if run.late():
                found["not_measured"].append(name)
                continue
            start = time.perf_counter()
            try:
                found[name] = SECTIONS[name](run)
            except Exception as error:  # what fails is said, and what comes after it is measured all the same
                found[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
            found["seconds"][name] = time.perf_counter() - start
            keep(found)
    found["seconds"]["all"] = time.perf_counter() - began
    keep(found)
    return found


def main() -> int:
    """Run the command; status 2 for flags that cannot be."""
    return flags.run(command, sys.argv[1:], error_status=2)


def command(argv: Sequence[str]) -> int:
    """Measure; status 1 where a section failed or the step is not right."""
    from benchmarks.gpu import table
    from moco_jax.config import unknown

    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=__doc__ or "")
    names = named["sections"].split(",") if named["sections"] else list(SECTIONS)
    for name in names:
        if name not in SECTIONS:
            raise unknown("section", name, SECTIONS)
    if named["sizes"] not in pages.SIZES:
        raise unknown("--sizes", named["sizes"], pages.SIZES)
    sizes = pages.SIZES[named["sizes"]]
    flags.prepare_environment()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch is to have memory beside it
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)

        def keep(found: dict[str, Any]) -> None:
            if named["output"]:
                Path(named["output"]).write_text(json.dumps(found, indent=2) + "\n")

        found = measure(sizes, seconds=float(named["seconds"]), names=names, keep=keep)
    print(table.of(found))
    failed = [name for name in names if "failed" in found.get(name, {})]
    right = found.get("correct", {}).get("all_hold", True)
    return 1 if failed or not right else 0


if __name__ == "__main__":
    sys.exit(main())
