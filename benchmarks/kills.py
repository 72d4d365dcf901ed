"""kill -9, again and again: a process that saves in a tight loop, and training runs that are started again, as JSON.

    python -m benchmarks.kills --store=200 --train=40 --output=benchmarks/results/kills.json

After every kill each checkpoint that is listed is read as a whole and compared with what was saved. Where a kill landed
is read off the disk: a folder that is half written, or one on its way out that is half removed. Two of three kills of
the saving process come at a random moment; every third is aimed at a removal, which is short. Of the kills of training
runs every fourth comes before the first step, the others after it. A run ends when it ends: its state must be that of a
run that nobody disturbed, bit for bit.
"""

import collections
import functools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output, runs
from moco_jax.cli import flags

NAMED = {
    "store": (200, "kills of a process that saves in a tight loop"),
    "train": (40, "kills of training runs"),
    "seed": (0, "of the moments"),
    "output": (None, "file for the JSON, besides stdout"),
}
USAGE = "usage: python -m benchmarks.kills [--store=N] [--train=N] [--seed=N] [--output=FILE]"
LEAVES, MEBIBYTES = 40, 8  # of the state that is saved in a loop
EPOCHS = 60  # of a training run that is killed: some seconds behind its start, a save after each


def state_at(step: int) -> dict[str, Any]:
    """Leaves that do not compress and depend on the step."""
    return {"w": {str(i): row + np.float32(step) for i, row in enumerate(_base())}, "step": np.asarray(step, np.int32)}


@functools.cache
def _base() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((LEAVES, MEBIBYTES * 2**18 // LEAVES)).astype(np.float32)


def save_for_ever(folder: str, started: Any) -> None:
    """Save step after step from where the folder is, until killed."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from moco_jax.checkpoints.store import Store

    with Store(Path(folder), keep=2) as store:
        step = (store.whole()[0] or 0) + 1
        while True:
            store.save(step, state_at(step), {"format": 1, "at": step})
            if not started.is_set():  # on a slow machine a kill would always come before the first one
                store.wait()
                started.set()
            step += 1


def landed(folder: Path) -> str:
    """Where a kill landed, by what it left."""
    from moco_jax.checkpoints import arrays
    from moco_jax.checkpoints.folder import TRASH

    if any(folder.glob(f"*{arrays.TEMPORARY}*")):
        return "inside a save"
    if (folder / TRASH).is_dir() and any((folder / TRASH).iterdir()):
        return "inside a deletion"
    return "between"


def torn(folder: Path) -> dict[int, str]:
    """What is wrong with each checkpoint that is listed and is not whole."""
    from moco_jax.checkpoints import verified
    from moco_jax.checkpoints.folder import steps_of

    faults = {}
    for step in steps_of(folder):
        try:
            verified.check(folder / str(step))
        except Exception as fault:
            faults[step] = f"{type(fault).__name__}: {fault}"
    return faults


def of_store(folder: Path, times: int, rng: random.Random) -> dict[str, Any]:
    """Kill a saving process some times: where the kills landed, checkpoints read, and those that were torn or wrong."""
    from moco_jax.checkpoints import verified
    from moco_jax.checkpoints.folder import TRASH, steps_of

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moco_jax.checkpoints.store"])  # imported once, by no one who uses JAX
    where, faults, read, newest = collections.Counter[str](), [], 0, 0
    for round_ in range(times):
        started = context.Event()
        process = context.Process(target=save_for_ever, args=(str(folder), started))
        process.start()
        if not started.wait(600):
            raise RuntimeError("the process that is to be killed does not start")
        if round_ % 3 == 2:
            limit = time.monotonic() + 120
            while time.monotonic() < limit and not ((folder / TRASH).is_dir() and os.listdir(folder / TRASH)):
                pass
        else:
            time.sleep(rng.uniform(0.0, 1.0))
        process.kill()
        process.join()
        where[landed(folder)] += 1
        faults += [f"{step}: {fault}" for step, fault in torn(folder).items()]
        for step in steps_of(folder):
            found, wanted = verified.leaves(verified.read(folder / str(step), ["w", "step"])), state_at(step)
            if any(not np.array_equal(found[k], v) for k, v in verified.leaves(wanted).items()):
                faults.append(f"{step}: other values")
            read += 1
        last = max(steps_of(folder), default=0)
        if last < newest:
            faults.append(f"{newest}: gone")
        newest = last
    return {"kills": times, "landed": dict(where), "checkpoints read": read, "torn": faults, "last step": newest}


def trains(process: "subprocess.Popen[str]") -> bool:
    """Wait until a run says its first step; False where it ends before."""
    assert process.stdout is not None
    return any(line.startswith("step ") for line in process.stdout)


def of_training(folder: Path, times: int, rng: random.Random, *, epochs: int = EPOCHS) -> dict[str, Any]:
    """Kill training runs some times in all, and start each again until it ends; every fourth kill before it trains."""
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))

    def train(workdir: Path) -> "subprocess.Popen[str]":
        return runs.start(workdir, {"train.epochs": epochs})[0]

    for name in ("cold", "undisturbed"):  # the first one compiles; how long does one take that need not?
        begun = time.monotonic()
        process = train(folder / name)
        trains(process)
        starting = time.monotonic() - begun
        runs.finished([process])
        training = time.monotonic() - begun - starting
    wanted = runs.state(folder / "undisturbed")
    where, faults, ends, kills = collections.Counter[str](), [], [], 0
    if runs.state(folder / "cold") != wanted:
        faults.append("two undisturbed runs differ")
    while kills < times:
        workdir = folder / f"run_{len(ends)}"
        while kills < times:
            process = train(workdir)
            early = kills % 4 == 3
            begun = not early and trains(process)
            try:
                process.wait(timeout=rng.uniform(0, starting if early else training))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                where[landed(workdir / "checkpoints") if begun else "before the first step"] += 1
                faults += [f"{workdir.name}/{s}: {fault}" for s, fault in torn(workdir / "checkpoints").items()]
                continue
            process.communicate()
            if process.returncode:
                faults.append(f"{workdir.name}: ended with {process.returncode}")
            break
        else:
            runs.finished([train(workdir)])
        ends.append(runs.state(workdir) == wanted)
    return {
        "kills": kills,
        "landed": dict(where),
        "torn": faults,
        "runs": len(ends),
        "runs that ended in the state of the undisturbed one": sum(ends),
        "seconds of the undisturbed run": {"before its first step": round(starting, 1), "after": round(training, 1)},
    }


def measure(folder: Path, *, store: int, training: int, seed: int) -> dict[str, Any]:
    """Both counts; 0 kills: not done."""
    rng = random.Random(seed)
    counts = {"store": of_store(folder / "store", store, rng) if store else None}
    counts["train"] = of_training(folder, training, rng) if training else None
    return {name: count for name, count in counts.items() if count is not None}


def main() -> int:
    """Measure as the flags say; 1 where a checkpoint was torn or a run ended elsewhere."""
    return flags.run(_run, sys.argv[1:])


def _run(argv: list[str]) -> int:
    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=USAGE)
    flags.prepare_environment()
    os.environ["JAX_PLATFORMS"] = "cpu"
    store, training, seed = (named[name] for name in ("store", "train", "seed"))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), store=store, training=training, seed=seed)
    output.keep(found, named["output"])
    lost = "runs that ended in the state of the undisturbed one"
    return int(any(c["torn"] or c.get("runs") != c.get(lost) for c in found.values()))


if __name__ == "__main__":
    sys.exit(main())
