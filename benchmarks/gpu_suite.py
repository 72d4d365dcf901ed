"""What one card does, in one run meant for eight minutes: is the step right, how fast is it, and how fast is PyTorch's.

    python -m benchmarks.gpu_suite --output=FILE.json            needs the package and JAX; for PyTorch's side torch
    python -m benchmarks.gpu_suite --sizes=shrunken              everything small, on a CPU, in minutes

Correctness first, then speed, then a table. A line is said as each section ends, and the JSON is rewritten after every
figure: stopped in the middle, it holds what was measured, and names what was not. A section that would begin after
--seconds is left out, and named. benchmarks/README.md says what each one is:
correct, ceilings, steps, beside_pytorch, demo, parts, profile, compiling.
"""

import dataclasses
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import output, step_time
from benchmarks.gpu import pages
from moco_jax.cli import flags
from moco_jax.config import ConfigError, unknown

NAMED = {
    "output": (None, "file for the JSON, which must not be there yet"),
    "seconds": (440.0, "no section begins after so many"),
    "sections": (None, "only these, separated by commas"),
    "sizes": ("full", "full; short: fewer; shrunken: everything small, for a CPU"),
}
BYTES, FLOPS = 448e6, 32.5e9  # per image of MoCo ResNet-50 at 224 pixels: arithmetic, with batch norm not fused away
WORKERS = 6  # programs that compile at once, where there are as many cores
Found = Iterator[tuple[str, Any]]  # figures by name, each as soon as it is known


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
        (f"{name} on ready views", step_time.on_ready_views, pages.one_group(c))
        for name, c in (("ResNet-50", beside), ("demo", small))
    ]
    needed = {
        "steps": [one, *other],
        "beside_pytorch": ready,
        "demo": [
            ("an epoch per dispatch", step_time.compiled, epoch),
            ("one step per dispatch", step_time.compiled, small),
        ],
        "profile": [one],
        "compiling": [one],
    }
    for name, make, c in (program for section in names for program in needed.get(section, [])):
        if name not in run.programs:
            run.programs[name] = pool.submit(_in_time, run, make, c)


def _in_time(run: Run, make: Callable[[Any], step_time.Program], c: Any) -> step_time.Program:
    if run.late():
        raise TimeoutError("not compiled, for want of time")
    return make(c)


def timed(run: Run, name: str, *, costs: bool = False) -> dict[str, Any]:
    """How fast a program is, each repeat as long as the sizes ask for; with `costs` what it is made of, too."""
    program = run.programs[name].result()
    one = min(step_time.timed(program, calls=1, repeats=2)) * program.steps
    calls = max(1, round(run.sizes.repeat_seconds / max(one, 1e-6)))
    repeats = run.sizes.repeats
    found = step_time.pace(program, step_time.timed(program, calls=calls, repeats=repeats))
    if costs:
        found |= step_time.counted(program, step_seconds=found["step_milliseconds"] / 1e3, repeats=repeats)
    return found


def correct(run: Run) -> Found:
    """The step against a CPU's, one step per dispatch against several, and the same call twice."""
    from benchmarks.gpu import correct

    yield from correct.check(run.sizes).items()


def ceilings(run: Run) -> Found:
    """What the card copies and multiplies."""
    from benchmarks.gpu import alone

    yield from alone.ceilings(run.sizes).items()


def steps(run: Run) -> Found:
    """ResNet-50 at every batch, the rate and the fixed cost that fit them, and its program against arithmetic."""
    from benchmarks.gpu import alone, program

    beside, measured = run.sizes.beside, {}
    for batch in (beside, *(b for b in run.sizes.batches if b != beside)):
        if measured and run.late():
            break
        measured[batch] = timed(run, f"batch {batch}", costs=batch == beside)
        yield f"batch {batch}", measured[batch]
    if len(measured) > 1:
        yield "fit", alone.fit(list(measured), [pace["step_milliseconds"] for pace in measured.values()])
    found = program.read(run.programs[f"batch {beside}"].result().call.as_text(), beside)
    flops = measured[beside]["flops_per_image"]
    found |= {"bytes_over_448_mb": 1e6 * found["mb_per_image"] / BYTES, "flops_over_32.5_g": flops and flops / FLOPS}
    yield "program", found


def beside_pytorch(run: Run) -> Found:
    """Our step and PyTorch's on views that are ready, of plain batch norm, and the ratio to its fastest variant."""
    from benchmarks.gpu import torch_step

    if find_spec("torch") is None:
        yield "not measured", "torch is not installed"
        return
    nets = {"ResNet-50": pages.imagenet(run.sizes, batch_size=run.sizes.beside), "demo": pages.demo(run.sizes)}
    ours, fastest = {}, dict.fromkeys(nets, 0.0)
    for net in nets:
        ours[net] = timed(run, f"{net} on ready views")
        yield f"{net}, ours", ours[net]
    for variant, options in torch_step.VARIANTS:
        for net, c in nets.items():
            if run.late():
                yield f"{net}, PyTorch, {variant}", {"failed": "not measured, for want of time"}
                continue
            found = torch_step.measure(c, run.sizes, **options)
            if "grouped" not in options:
                fastest[net] = max(fastest[net], found.get("images_per_second", 0.0))
            yield f"{net}, PyTorch, {variant}", found
    for net, rate in fastest.items():
        yield f"{net}, ours over PyTorch's fastest", ours[net]["images_per_second"] / rate if rate else None


def demo(run: Run) -> Found:
    """The CIFAR-10 step, an epoch per dispatch and one step per dispatch."""
    yield "an epoch per dispatch", timed(run, "an epoch per dispatch", costs=True)
    yield "one step per dispatch", timed(run, "one step per dispatch")


def parts(run: Run) -> Found:
    """The loss at every K, batch norm, and the update, each alone. Augmentation alone is beside each step."""
    from benchmarks import large_queue
    from benchmarks.gpu import alone

    s = run.sizes
    yield "loss", large_queue.measure(s.queues, rows=s.beside, repeats=s.repeats)
    yield "batch norm and ReLU, forward and backward", alone.batch_norm(s)
    yield "SGD and the target's average", alone.update(s)


def profile(run: Run) -> Found:
    """The ten kernels that take most of a step."""
    from benchmarks.gpu import alone

    go = step_time.runner(run.programs[f"batch {run.sizes.beside}"].result())
    go(2)
    with tempfile.TemporaryDirectory() as folder:
        yield from alone.top_kernels(lambda: go(1), folder).items()


def compiling(run: Run) -> Found:
    """Seconds to compile the step, and to find it in the cache on disk."""
    import jax

    yield "seconds, with others at once", run.programs[f"batch {run.sizes.beside}"].result().compile_seconds
    jax.clear_caches()
    c = pages.imagenet(run.sizes, batch_size=run.sizes.beside)
    yield "seconds from the cache", step_time.compiled(c).compile_seconds


SECTIONS: dict[str, Callable[[Run], Found]] = {
    "correct": correct,  # not timed, so other programs compile meanwhile
    "ceilings": ceilings,
    "steps": steps,
    "beside_pytorch": beside_pytorch,
    "demo": demo,
    "parts": parts,
    "profile": profile,
    "compiling": compiling,
}


def measure(
    sizes: str,
    *,
    seconds: float,
    names: list[str],
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The sections of `names`; `keep` receives what is known after each figure, `say` a line after each section.

    Raises ConfigError for several cards, and for none where the sizes are a card's.
    """
    from moco_jax import parallel

    if parallel.device_count() > 1:
        raise ConfigError(f"{parallel.describe()}: this is of one card; set CUDA_VISIBLE_DEVICES=0")
    if parallel.on_cpu() and sizes != "shrunken":
        raise ConfigError(
            f"JAX finds no GPU, but {parallel.describe()}: install jax[cuda12] or jax[cuda13], or take --sizes=shrunken"
        )
    began = time.perf_counter()
    run = Run(pages.SIZES[sizes], began + seconds)
    found = about(sizes) | {"not_measured": list(names), "seconds": {}}
    say(f"{found['card']}, JAX {found['jax']}: {', '.join(names)}")
    keep(found)
    pool = ThreadPoolExecutor(min(WORKERS, parallel.host_cores()))
    try:
        compile_all(run, pool, names)
        for name in names:
            if name != "correct":  # XLA tries kernels on the card while it compiles: nothing is timed beside that
                wait(run.programs.values())
            if run.late():
                say(f"{name}: left out, as --seconds={seconds:g} have passed")
                continue
            start, found[name] = time.perf_counter(), {}
            try:
                for part, value in SECTIONS[name](run):
                    found[name][part] = value
                    keep(found)
            except Exception as error:  # what fails is said, and what comes after it is measured all the same
                found[name]["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            found["seconds"][name] = time.perf_counter() - start
            found["not_measured"].remove(name)
            say(f"{name}: {found[name].get('failed', 'done')} ({found['seconds'][name]:.0f} s)")
            keep(found)
    finally:
        pool.shutdown(cancel_futures=True)
    found["seconds"]["all"] = time.perf_counter() - began
    keep(found)
    return found


def about(sizes: str) -> dict[str, Any]:
    """What figures were measured on and with."""
    import jax

    from moco_jax import parallel

    platform = jax.devices()[0].client.platform_version.splitlines()
    return {
        "card": parallel.describe(),
        "commit": output.commit(),
        "jax": jax.__version__,
        "platform": platform,
        **output.versions("jaxlib", "torch"),
        "sizes": sizes,
    }


def main() -> int:
    """Run the command; status 2 for flags that cannot be."""
    return flags.run(command, sys.argv[1:], error_status=2)


def command(argv: Sequence[str]) -> int:
    """Measure; status 1 where a section failed or was not reached, or the step is not right."""
    from benchmarks.gpu import table

    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=__doc__ or "")
    names = named["sections"].split(",") if named["sections"] else list(SECTIONS)
    for name in names:
        if name not in SECTIONS:
            raise unknown("section", name, SECTIONS)
    if named["sizes"] not in pages.SIZES:
        raise unknown("--sizes", named["sizes"], pages.SIZES)
    output.check(named["output"])
    if named["output"] and Path(named["output"]).exists():
        raise ConfigError(f"--output={named['output']} is there already, with figures in it: name another file")
    flags.prepare_environment()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch is to have memory beside it
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms:
        os.environ["JAX_PLATFORMS"] = f"{platforms},cpu"  # which the step is held against
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache  # one's own would be warm

        def keep(found: dict[str, Any]) -> None:
            if named["output"]:
                Path(named["output"] + ".part").write_text(json.dumps(found, indent=2) + "\n")
                os.replace(named["output"] + ".part", named["output"])

        say = functools.partial(print, flush=True)
        try:
            found = measure(named["sizes"], seconds=named["seconds"], names=names, keep=keep, say=say)
        except KeyboardInterrupt:
            if named["output"]:
                say(f"what was measured: python -m benchmarks.gpu.table {named['output']}")
            raise
    print(table.of(found))
    failed = [name for name in names if "failed" in found.get(name, {"failed": "not reached"})]
    return 1 if failed or not found.get("correct", {}).get("all_hold", True) else 0


if __name__ == "__main__":
    sys.exit(main())
