"""The MoCo paper's comparison on part of CIFAR-10: three dictionaries, their size, momentum, temperature, shuffle.

    python -m benchmarks.mechanisms --data_dir=DIR --part=tuning     # or sizes, momentum, temperature, shuffle, ... all
    python -m benchmarks.mechanisms --list                           # only say which have no line yet

One line of JSON per run goes into --output as it ends. A run that has a line of the same config is not run again, and
one that was stopped goes on from its checkpoint, so the command may be stopped and repeated; --jobs runs as many at a
time, a core each. The status is 1 where a run failed.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import hard_negatives
from moco_jax import config, pages
from moco_jax.cli import flags

# Every run sees the same images equally often. Few images, often: features of a bank are as old as an epoch or two, and
# that is short against the run.
COMMON = {
    "data.split": "train[:2048]",  # whole batches of every size
    "batch_size": 64,
    "bn.group_size": 8,
    "model.width": 16,
    "model.head": "linear",  # as in the paper
    "train.epochs": 24,
    "optimizer.linear_scaling": True,
    "eval.feature": "backbone",
    "eval.every_epochs": 24,
    "leak.every_epochs": 0,
    "consistency.every_epochs": 12,  # half way too: at the end of a cosine the encoder hardly moves any more
    "checkpoint.every_epochs": 8,
    "checkpoint.keep": 1,
    "data.workers": 1,
}
PAGES = {
    "moco": "cifar10_small",
    "end_to_end": "cifar10_small_end_to_end",
    "memory_bank": "cifar10_small_memory_bank",
}
SEEDS = (1, 2, 3)  # 0 is for tuning
GRID = [(rate, t) for rate in (0.06, 0.12, 0.24, 0.48) for t in (0.1, 0.2)]  # the same for every mechanism
GRID += [(0.24, 0.4)]
# What one mechanism alone has is not tuned but as published; the bank's momentum of 0.5 is its page's own.
PUBLISHED: dict[str, dict[str, Any]] = {"moco": {"moco.momentum": 0.999}, "end_to_end": {}, "memory_bank": {}}
TUNED: dict[str, dict[str, Any]] = {  # the best of the grid
    "moco": {"optimizer.learning_rate": 0.24, "moco.temperature": 0.1},
    "end_to_end": {"optimizer.learning_rate": 0.24, "end_to_end.temperature": 0.1},
    "memory_bank": {"optimizer.learning_rate": 0.24, "memory_bank.temperature": 0.2},
}
# NCE by rate and first batches that estimate Z: from one, as published, it is that of random features; nothing learns.
NCE_GRID = [(rate, 1) for rate in (0.015, 0.03, 0.06, 0.12)] + [(0.06, 64), (0.24, 64)]
NCE_TUNED = {"moco": (0.24, 64), "memory_bank": (0.06, 64)}  # the best of them
AGES = (0, 25, 50, 75, 100)  # percent of the way from the newest stored keys to the oldest
MIDDLE = 256  # the dictionary of tuning, and of what is not about its size
SIZES = (64, 256, 1024)
MOMENTA = (0.0, 0.9, 0.99, 0.999, 0.9999)
TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0)
NAMED = {
    "part": ("all", "tuning, sizes, momentum, temperature, shuffle, untrained, encoders, nce_tuning, nce, or all"),
    "data_dir": (None, "where TFDS has cifar10"),
    "workdir": ("runs/mechanisms", "a folder per run goes here"),
    "output": ("benchmarks/results/mechanisms.jsonl", "a line per run goes here"),
    "jobs": (1, "runs at a time"),
    "run": (None, "only this run, in this process, its line to stdout"),
}


class Run(NamedTuple):
    """One run: its page, and what differs from page and COMMON."""

    mechanism: str
    changes: dict[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """Such as moco,queue.size=256,seed=1."""
        return ",".join([self.mechanism, *(f"{k}={v}" for k, v in self.changes.items()), f"seed={self.seed}"])


def dictionary(mechanism: str, size: int) -> dict[str, Any]:
    """The keys that give a mechanism a dictionary of `size`."""
    if mechanism == "end_to_end":
        return {"batch_size": size}
    return {"queue.size" if mechanism == "moco" else "memory_bank.size": size}


def parts() -> dict[str, list[Run]]:
    """The runs of every part; those of one name are one run."""
    middle = {name: dictionary(name, MIDDLE) for name in PAGES}

    def over(mechanism: str, changes: list[dict[str, Any]], seeds: Sequence[int] = SEEDS) -> list[Run]:
        settings = TUNED[mechanism] | PUBLISHED[mechanism]
        return [Run(mechanism, settings | c, seed) for seed in seeds for c in changes]

    def nce(name: str, grid: Sequence[tuple[float, int]]) -> list[dict[str, Any]]:
        fixed = middle[name] | {f"{name}.loss": "nce"}
        batches = [{f"{name}.nce_batches": count} if count > 1 else {} for _, count in grid]
        return [fixed | {"optimizer.learning_rate": rate} | b for (rate, _), b in zip(grid, batches, strict=True)]

    moco = middle["moco"]
    return {
        "tuning": [
            Run(name, middle[name] | PUBLISHED[name] | {"optimizer.learning_rate": r, f"{name}.temperature": t}, 0)
            for name in PAGES
            for r, t in GRID
        ],
        "sizes": [run for name in PAGES for run in over(name, [dictionary(name, k) for k in SIZES])],
        "momentum": over("moco", [{"queue.size": 1024, "moco.momentum": m} for m in MOMENTA]),
        "temperature": over("moco", [moco | {"moco.temperature": t} for t in TEMPERATURES]),
        "shuffle": over("moco", [moco | {"shuffle.block": 0}]),  # on: as in sizes
        "untrained": over("moco", [moco | {"optimizer.learning_rate": 0.0}]),
        "encoders": over("end_to_end", [middle["end_to_end"] | {"end_to_end.shared": False}]),
        "nce_tuning": [run for name in NCE_TUNED for run in over(name, nce(name, NCE_GRID), seeds=(0,))],
        "nce": [run for name, best in NCE_TUNED.items() for run in over(name, nce(name, [best]))],
    }


def page_of(run: Run, data_dir: str | None) -> Any:
    """The config page of a run; what is tuned or changed last counts."""
    page = pages.load(PAGES[run.mechanism])
    for key, value in (COMMON | {"data.data_dir": data_dir, "seed": run.seed} | run.changes).items():
        section, _, name = key.rpartition(".")
        (page[section] if section else page)[name] = value
    return page


def digest(run: Run) -> str:
    """What the numbers of a run follow from, in twelve digits: its config, but for what changes none of them."""
    settings = config.flat(config.read(page_of(run, None)))
    none = (
        "data.workers",
        "data.canvas",
        "data.max_bad_fraction",
        "queue.chunk",
        "consistency.",
        "train.max_skipped",
        "train.heartbeat_seconds",
    )
    none += tuple(
        f"{of}.{what}_feature" for of in ("data", "eval") for what in ("image", "label")
    )  # CIFAR-10's only ones
    kept = {key: value for key, value in settings.items() if not key.startswith(none)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def line_of(run: Run, workdir: Path, data_dir: str | None) -> dict[str, Any]:
    """Train a run, or go on with it, and say what came of it."""
    from moco_jax import pretrain
    from moco_jax.reports import runs, verdict

    page, began = config.read(page_of(run, data_dir)), time.perf_counter()
    pretrain.train(page, workdir)
    found = runs.read(workdir)
    last = {name: values[max(values)] for name, values in found.series.items()}
    line = {
        "run": run.name,
        "config": digest(run),
        "mechanism": run.mechanism,
        "seed": run.seed,
        "changes": run.changes,
        "knn_top1": last["knn_top1"],
        "loss": verdict.late(found, "loss"),
        "chance": found.chance,
        "pretext_accuracy": verdict.late(found, "pretext_accuracy"),
        "effective_rank": verdict.late(found, "effective_rank"),
        "key_cosine_by_age": by_age(found.series, found.step),
        "key_cosine_half_way": by_age(found.series, found.step // 2),
        "verdict": verdict.of(found).kind,
        "steps": found.step,
        "images_seen": found.step * page.batch_size,
        "seconds": time.perf_counter() - began,
    }
    if run in parts()["temperature"]:
        line["hard_negatives"] = hard_negatives.shares(page, workdir, TEMPERATURES)
    return line


def by_age(series: dict[str, dict[int, float]], step: int) -> list[tuple[int, float]]:
    """(age, cosine of stored keys with those of the encoder at `step`), as the run logged them."""
    ages = {
        int(series[f"key_age_{p}"][step]): series[f"key_cosine_{p}"][step] for p in AGES if f"key_age_{p}" in series
    }
    return sorted(ages.items())


def spawned(run: Run, named: dict[str, Any]) -> str:
    """The line of a run in a process of its own, which holds one core; "" where it failed."""
    command = [sys.executable, "-m", "benchmarks.mechanisms", f"--run={run.name}", f"--workdir={named['workdir']}"]
    command += [f"--data_dir={named['data_dir']}"] if named["data_dir"] else []
    threads = "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=2"  # 3 compiles twice as long
    environment = os.environ | {"XLA_FLAGS": threads, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(Path(named["workdir"]).resolve() / "compiled")  # much is alike
    log = Path(named["workdir"]) / "console" / f"{run.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as console:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=console, text=True, check=False)
    lines = [text for text in done.stdout.splitlines() if text.startswith('{"run"')]
    if done.returncode or not lines:
        print(f"failed: {run.name}, see {log}", flush=True)
        return ""
    return lines[-1]


def main(argv: Sequence[str] | None = None) -> int:
    """List, run one, or run what has no line yet."""
    return flags.run(_main, argv)


def _main(argv: Sequence[str]) -> int:
    listing, argv = "--list" in argv, [a for a in argv if a != "--list"]
    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=__doc__ or "")
    every = parts()
    if named["run"]:
        flags.prepare_environment()
        known = {r.name: r for runs in every.values() for r in runs}
        if named["run"] not in known:
            raise config.unknown("run", named["run"], known)
        run = known[named["run"]]
        print(json.dumps(line_of(run, Path(named["workdir"]) / run.name, named["data_dir"])), flush=True)
        return 0
    if named["part"] not in (*every, "all"):
        raise config.unknown("part", named["part"], (*every, "all"))
    chosen = [name for name in every if name == named["part"] or (named["part"] == "all" and "tuning" not in name)]
    asked = {run.name: run for name in chosen for run in every[name]}
    output = Path(named["output"])
    lines = [json.loads(text) for text in output.read_text().splitlines()] if output.exists() else []
    done = {(line["run"], line["config"]) for line in lines}
    left = [run for name, run in asked.items() if (name, digest(run)) not in done]
    print(f"{len(asked)} runs, {len(left)} left", flush=True)
    if listing:
        print(*(run.name for run in left), sep="\n")
        return 0
    return int(run_all(sorted(left, key=lambda r: r.seed), named, output) > 0)


def run_all(left: Sequence[Run], named: dict[str, Any], output: Path) -> int:
    """Run some, a few at a time, each line written as its run ends; how many failed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    pool = ThreadPoolExecutor(max(named["jobs"], 1))
    try:
        for run in as_completed([pool.submit(spawned, run, named) for run in left]):
            if text := run.result():
                with output.open("a") as file:
                    file.write(text + "\n")
                found = json.loads(text)
                print(f"{found['knn_top1']:.4f}  {found['seconds']:.0f} s  {found['run']}", flush=True)
            failed += not text
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C none is begun any more
    return failed


if __name__ == "__main__":
    sys.exit(main())
