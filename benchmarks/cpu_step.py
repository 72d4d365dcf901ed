"""How fast a training step is on a CPU, beside the same step in PyTorch, as JSON.

    python -m benchmarks.cpu_step --models=digits,width16 --repeats=5 --output=benchmarks/results/cpu_step.json

Both get the same ready views and do what their step does with them: keys, queries, loss, gradients, optimizer, queue.
Ours runs on one device, on several, on one with batch norm over the whole batch (`plain`), with views cut and
augmented from resident images, with jaxlib's own choice of convolutions, and without barriers; PyTorch's reference step
(`tests/parity/torch_reference.py`) as it comes and with channels last, plain and in groups. Each is a process of its
own, which is idle while others are timed; all take turns, `repeats` times and each time another first, so that a busy
machine is busy for all.
Speeds are medians, and ratios medians of the ratios within a turn. CPU seconds are those of all threads: where others
use the cores as well, they tell more than the clock. Without torch PyTorch is left out. `--xla_flags` times ours with
each of a few flags of XLA instead.
"""

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import output, runs
from moco_jax.cli import flags

NAMED = {
    "models": ("digits,width16", "of: digits, width16, width64"),
    "repeats": (5, "turns of each; medians count"),
    "seconds": (1.0, "of a turn, at least one step"),
    "xla_flags": (False, "ours with flags of XLA, each alone, instead of ours beside PyTorch"),
    "output": (None, "file for the JSON, besides stdout"),
}
USAGE = "usage: python -m benchmarks.cpu_step [--models=A,B] [--repeats=N] [--seconds=S] [--xla_flags] [--output=FILE]"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # page, and changes of its keys
    "digits": ("digits", {}),
    "width16": ("cifar10_demo", {"model.width": 16, "batch_size": 128, "shuffle.block": 128}),
    "width64": ("cifar10_demo", {"batch_size": 128, "shuffle.block": 128}),
}
MARK = "measured: "  # begins the lines that are for us
OURS, THEIRS = "moco_jax", "pytorch"
JAXLIBS_CHOICE = "--xla_cpu_experimental_ynn_fusion_type=+individual_convolution"
NO_BARRIERS = "--xla_disable_hlo_passes=none"  # a name that no pass has: dropped before fusion, as XLA does


class Contestant(NamedTuple):
    """Whose step is timed, and how it is run."""

    library: str = OURS
    devices: int = 1  # fake ones, which share the cores
    plain: bool = False  # batch norm over the whole batch instead of the page's groups
    augmented: bool = False  # views cut and augmented in the step, instead of ready ones
    channels_last: bool = False
    xla_flags: str = ""  # beside those of the environment


CONTESTANTS = {
    "ours": Contestant(),
    "ours, 2 devices": Contestant(devices=2),
    "ours, plain": Contestant(plain=True),
    "ours, augmenting": Contestant(augmented=True),
    "ours, jaxlib's choice": Contestant(xla_flags=JAXLIBS_CHOICE),
    "ours, no barriers": Contestant(xla_flags=NO_BARRIERS),
    "pytorch": Contestant(THEIRS),
    "pytorch, channels last": Contestant(THEIRS, channels_last=True),
    "pytorch, plain": Contestant(THEIRS, plain=True),
    "pytorch, plain, channels last": Contestant(THEIRS, plain=True, channels_last=True),
}


XLA_FLAGS = {  # of jaxlib 0.10 to 0.12
    "fast math": "--xla_cpu_enable_fast_math=true",
    "512-bit vectors": "--xla_cpu_prefer_vector_width=512",
    "oneDNN": "--xla_cpu_use_onednn=true --xla_cpu_experimental_onednn_custom_call=true",
    "no YNNPACK reductions": "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution,-reduce",
}


def page_of(name: str, changes: Mapping[str, Any], contestant: Contestant) -> Any:
    """The page of a model as a contestant trains it; ready views are floats that need no more."""
    from moco_jax import pages

    page = pages.load(name)
    page.update_from_flattened_dict(dict(changes))
    if contestant.plain:
        page.bn.group_size, page.shuffle.block = 0, None
    if not contestant.augmented:
        channels = len(page.data.mean)
        page.data.range, page.data.mean, page.data.std = (0.0, 1.0), (0.0,) * channels, (1.0,) * channels
    return page


def our_step(page: Any, *, augmented: bool) -> tuple[Callable[[], float], float]:
    """A step of ours that returns its loss, on the devices at hand, and the seconds of its compilation."""
    import jax
    import numpy as np

    from moco_jax import assembly, config, costs, parallel
    from moco_jax.data.sources import ArraySource
    from moco_jax.views.recipes import Crop, ViewRecipe

    rng, shape = np.random.default_rng(0), (page.views.size, page.views.size, len(page.data.mean))
    count, batch_size = 4 * page.queue.size, page.batch_size
    images = rng.integers(0, 256, (count, *shape), np.uint8) if augmented else rng.random((count, *shape), np.float32)
    recipe = None if augmented else (ViewRecipe(Crop((1.0, 1.0)), ()),) * 2
    parts = assembly.assemble(config.read(page), source=ArraySource(images, name="random"), recipe=recipe)
    batch: dict[str, Any] = {"ids": rng.integers(0, count, (1, batch_size, 2)).astype(np.int32)}
    if not augmented:
        batch["raw"] = tuple(rng.standard_normal((1, batch_size, *shape)).astype(np.float32) for _ in range(2))
    placed, data = parallel.put_batch(batch), parallel.put_data({"images": images} if augmented else {})
    call, seconds = costs.compile_call(parts, placed, data)
    state = parallel.born(parts.mechanism.init)

    def step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(call(state, placed, data))
        return float(metrics["loss"][0])

    return step, seconds


def their_step(page: Any, *, channels_last: bool) -> Callable[[], float]:
    """A step of the PyTorch reference that returns its loss."""
    import torch

    from tests.parity import torch_reference

    model, count, channels, size = page.model, page.batch_size, len(page.data.mean), page.views.size
    what = (model.arch, model.stem, model.width, model.head, model.dim, page.bn.group_size or count, channels)
    moco = torch_reference.Moco(
        *(torch_reference.Encoder(*what) for _ in range(2)),
        dim=model.dim,
        queue_size=page.queue.size,
        momentum=page.moco.momentum,
        temperature=page.moco.temperature,
        symmetric=page.moco.symmetric,
        weight_decay=page.optimizer.weight_decay,
        channels_last=channels_last,
    )
    views = [torch.randn(count, channels, size, size) for _ in range(2)]
    orders = [torch.randperm(count) for _ in range(2 if page.moco.symmetric else 1)]
    return lambda: float(moco.step(views, orders, page.optimizer.learning_rate)["loss"])


def serve(argv: Sequence[str]) -> int:
    """Within a process: make a step, say so, and time as many steps as each line of stdin says."""
    name, changes, given = json.loads(argv[0])
    contestant = Contestant(*given)
    page = page_of(name, changes, contestant)
    compile_seconds = None
    if contestant.library == OURS:
        flags.prepare_environment()
        step, compile_seconds = our_step(page, augmented=contestant.augmented)
    else:
        step = their_step(page, channels_last=contestant.channels_last)
    losses = [step(), step()]
    print(MARK + json.dumps({"compile_seconds": compile_seconds, "losses": losses}), flush=True)
    for line in sys.stdin:
        wall, cpu, steps = time.perf_counter(), time.process_time(), int(line)
        for _ in range(steps):
            step()
        passed = [(time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps]
        print(MARK + json.dumps(passed), flush=True)
    return 0


class Process:
    """A contestant in a process of its own."""

    def __init__(self, page: str, changes: Mapping[str, Any], contestant: Contestant) -> None:
        """Start it; what it says of its start is in `about`."""
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(contestant.devices)}
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {contestant.xla_flags}".strip()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cpu_step", "serve", json.dumps([page, changes, contestant])],
            cwd=runs.ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.about = self._heard()

    def timed(self, steps: int) -> list[float]:
        """Seconds and CPU seconds of a step, over so many."""
        assert self.process.stdin
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._heard()

    def end(self) -> None:
        """Let it go."""
        self.process.communicate(timeout=60)

    def _heard(self) -> Any:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}: see above")


def measure(
    page: str, changes: Mapping[str, Any], contestants: Mapping[str, Contestant], *, repeats: int, seconds: float
) -> dict[str, Any]:
    """Figures of one model: of each contestant, and the ratios between them."""
    processes, turns = {}, {}
    try:
        for name, contestant in contestants.items():
            processes[name] = Process(page, changes, contestant)
        steps = {name: max(1, round(seconds / process.timed(1)[0])) for name, process in processes.items()}
        turns = {name: [] for name in processes}
        for turn in range(repeats):
            names = list(processes)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                turns[name].append(processes[name].timed(steps[name]))
    finally:
        for process in processes.values():
            process.end()
    found = page_of(page, changes, Contestant())
    return {
        "page": page,
        "changes": dict(changes),
        "first_losses": {n: p.about["losses"] for n, p in processes.items()},
        "compile_seconds": {n: p.about["compile_seconds"] for n, p in processes.items() if p.about["compile_seconds"]},
        **compared(turns, found.batch_size),
    }


def compared(turns: Mapping[str, Sequence[Sequence[float]]], batch_size: int) -> dict[str, Any]:
    """Speeds of steps of `batch_size` images, and how ours compare with PyTorch's fastest of the same batch norm.

    turns: for each contestant (seconds, CPU seconds) of a step, turn by turn.
    """
    wall, cpu = ({name: [turn[i] for turn in of_one] for name, of_one in turns.items()} for i in (0, 1))
    ratios = {}
    for name in (n for n in turns if n.startswith("ours")):
        others = [n for n in turns if n.startswith(THEIRS) and ("plain" in n) == ("plain" in name)]
        if others:
            fastest, leanest = (min(others, key=lambda n, t=times: statistics.median(t[n])) for times in (wall, cpu))
            ratios[name] = {
                "speed": _median_ratio(wall[fastest], wall[name]),
                "of": fastest,
                "CPU seconds": _median_ratio(cpu[leanest], cpu[name]),
            }
    own = {n: _median_ratio(wall[n], wall["ours"]) for n in turns if n.startswith("ours,")}
    return {
        "images_per_second": {n: round(batch_size / statistics.median(t), 1) for n, t in wall.items()},
        "lowest_and_highest": {n: [round(batch_size / f(t), 1) for f in (max, min)] for n, t in wall.items()},
        "cpu_milliseconds_per_image": {n: round(1e3 * statistics.median(t) / batch_size, 3) for n, t in cpu.items()},
        "ours_over_pytorch": ratios,
        "seconds_over_those_of_ours": own,
    }


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def processor() -> str:
    """The processor's name, where Linux says it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    """Measure what the flags say."""
    return serve(sys.argv[2:]) if sys.argv[1:2] == ["serve"] else flags.run(_run, sys.argv[1:])


def _run(argv: list[str]) -> int:
    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=f"{USAGE}\n\n{__doc__}")
    models = named["models"].split(",")
    for name in models:
        if name not in MODELS:
            raise flags.config.unknown("model", name, MODELS)
    if named["repeats"] < 1:
        raise flags.ConfigError("--repeats must be 1 or more: speeds are medians over them")
    output.check(named["output"])
    with_torch = importlib.util.find_spec("torch") is not None
    contestants = {n: c for n, c in CONTESTANTS.items() if c.library == OURS or with_torch}
    if named["xla_flags"]:
        tried = {f"ours, {name}": Contestant(xla_flags=given) for name, given in XLA_FLAGS.items()}
        contestants = {
            name: CONTESTANTS[name] for name in ("ours", "ours, jaxlib's choice", "ours, no barriers")
        } | tried
    how = {"repeats": named["repeats"], "seconds": named["seconds"]}
    result: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "commit": output.commit(),
        **how,
        "versions": output.versions("jax", "jaxlib", "torch"),
        "models": {},
    }
    for name in models:
        result["models"][name] = measure(*MODELS[name], contestants, **how)
    output.keep(result, named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
