"""Training under a supervisor, on a machine that takes it away every 20 to 60 seconds, as JSON.

    python -m benchmarks.supervised --minutes=20 --output=benchmarks/results/supervised.json

The supervisor knows one thing: whatever the status, run the same command again until it is 0. Signals come at random,
SIGKILL and SIGTERM alike often. The state at the end must be that of a run that nobody disturbed, bit for bit, and
every number of the log as well.
"""

import collections
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import kills, output, runs
from moco_jax.cli import flags

NAMED = {
    "minutes": (20.0, "of training to be disturbed, about"),
    "every": ("20,60", "seconds between two signals: from, to"),
    "seed": (0, "of moments and signals"),
    "output": (None, "file for the JSON, besides stdout"),
}
USAGE = "usage: python -m benchmarks.supervised [--minutes=M] [--every=FROM,TO] [--seed=N] [--output=FILE]"
SETTINGS = {"log.every_steps": 20, "checkpoint.every_epochs": 100, "data.path": "streamed"}


def start(workdir: Path, epochs: int) -> "subprocess.Popen[str]":
    """`train.py` for so many epochs into a folder, or on in it."""
    return runs.start(workdir, SETTINGS | {"train.epochs": epochs})[0]


def disturbed(workdir: Path, epochs: int, every: tuple[float, float], rng: random.Random) -> dict[str, Any]:
    """Run to the end under the supervisor: signals sent, statuses, steps lost, checkpoints that were torn."""
    sent, statuses, faults = collections.Counter[str](), collections.Counter[int](), []
    lost: dict[str, int] = collections.defaultdict(int)
    began, last, reached = time.monotonic(), None, 0
    while True:
        process = start(workdir, epochs)
        try:
            said, _ = process.communicate(timeout=rng.uniform(*every))
        except subprocess.TimeoutExpired:
            number = rng.choice((signal.SIGKILL, signal.SIGTERM))
            process.send_signal(number)
            said, _ = process.communicate(timeout=600)
            sent[number.name] += process.returncode != 0  # 0: it was done by then
        else:
            number = None
        if begun := re.search(r"continuing at step (\d+)", said):
            lost[last or "nothing"] += max(0, reached - int(begun[1]))
        statuses[process.returncode] += 1
        faults += [f"{step}: {fault}" for step, fault in kills.torn(workdir / "checkpoints").items()]
        if process.returncode == 0:
            break
        if process.returncode not in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
            raise RuntimeError(f"train.py ended with {process.returncode}: {said[-2000:]}")
        last, reached = number and number.name, max(map(int, re.findall(r"(?m)^step (\d+)/", said)), default=0)
    return {
        "minutes": round((time.monotonic() - began) / 60, 1),
        "signals": dict(sent),
        "statuses": dict(statuses),
        "steps lost, of those that were said, to": dict(lost),
        "torn": faults,
    }


def measure(folder: Path, *, minutes: float, every: tuple[float, float], seed: int) -> dict[str, Any]:
    """A run of about so many minutes, undisturbed and disturbed."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    runs.finished([start(folder / "cold", 100)])
    speed = []
    for epochs in (100, 500):
        begun = time.monotonic()
        runs.finished([start(folder / f"speed_{epochs}", epochs)])
        speed.append(time.monotonic() - begun)
    epochs = max(500, round(60 * minutes / 2 / max(speed[1] - speed[0], 1e-3) * 400))  # half of the time is starting
    begun = time.monotonic()
    runs.finished([start(folder / "undisturbed", epochs)])
    undisturbed = time.monotonic() - begun
    found = disturbed(folder / "disturbed", epochs, every, random.Random(seed))
    ends = [folder / name for name in ("undisturbed", "disturbed")]
    return {
        "steps": runs.STEPS_OF_EPOCH * epochs,
        "minutes of the undisturbed run": round(undisturbed / 60, 1),
        "disturbed": found,
        "same state": runs.state(ends[0]) == runs.state(ends[1]),
        "same log": runs.last_lines(ends[0]) == runs.last_lines(ends[1]),
    }


def main() -> int:
    """Measure as the flags say; 1 where something was torn or the ends differ."""
    return flags.run(_run, sys.argv[1:])


def _run(argv: list[str]) -> int:
    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=USAGE)
    first, last = (float(part) for part in named["every"].split(","))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), minutes=named["minutes"], every=(first, last), seed=named["seed"])
    output.keep(found, named["output"])
    return int(bool(found["disturbed"]["torn"]) or not found["same state"] or not found["same log"])


if __name__ == "__main__":
    sys.exit(main())
