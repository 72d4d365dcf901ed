"""Runs of `train.py` in processes of their own: started, ended, and what they leave. For what kills and stops them."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {  # a run of 24 steps, saved every fourth, which starts in seconds
    "train.epochs": 6,
    "batch_size": 32,
    "bn.group_size": 8,
    "shuffle.block": 16,
    "queue.size": 64,
    "model.width": 4,
    "model.dim": 8,
    "data.split": "train[:128]",
    "eval.every_epochs": 0,
    "leak.every_epochs": 0,
    "consistency.every_epochs": 0,
    "checkpoint.every_epochs": 1,
    "log.every_steps": 1,
}
STEPS_OF_EPOCH = 4
TRAIN = (str(ROOT / "train.py"),)


def overrides(changes: Mapping[str, Any]) -> list[str]:
    """SETTINGS with `changes` as flags."""
    return [f"--config.{key}={value}" for key, value in (SETTINGS | changes).items()]


def start(
    workdir: Path,
    changes: Mapping[str, Any],
    *flags: str,
    environment: Mapping[str, str] | None = None,
    devices: int = 1,
    processes: int = 1,
) -> "list[subprocess.Popen[str]]":
    """`train.py` into a folder, or on in it, on CPU: each of its processes, with what it says in a pipe."""
    return launch([*TRAIN, f"--workdir={workdir}", *overrides(changes), *flags], environment, devices, processes)


def launch(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, devices: int = 1, processes: int = 1
) -> "list[subprocess.Popen[str]]":
    """Python with these arguments in so many processes on CPU, which find each other where they are several."""
    shared = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)} | (environment or {})
    own: list[dict[str, str]] = [{}]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            shared["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free.getsockname()[1]}"
        shared["JAX_NUM_PROCESSES"] = str(processes)
        own = [{"JAX_PROCESS_ID": str(index)} for index in range(processes)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen([sys.executable, "-u", *arguments], cwd=ROOT, env=shared | o, **pipes) for o in own]


def finished(processes: "Sequence[subprocess.Popen[str]]") -> None:
    """Wait for all processes of a run to end well; raises RuntimeError with what was said where one does not."""
    ends = [(process.communicate(timeout=3600)[0], process.returncode) for process in processes]
    for said, status in ends:
        if status:
            raise RuntimeError(f"{processes[0].args} ended with {status}: {said[-3000:]}")


def lines(workdir: Path) -> list[dict[str, float]]:
    """The numbers of a run's log but for the clock, line by line; a line that a kill cut short is none."""
    from moco_jax import places
    from moco_jax.logs import CLOCK

    whole = (line for line in places.read_log(workdir).splitlines() if line.endswith("}"))
    records = (json.loads(line) for line in whole)
    return [{k: v for k, v in record.items() if k not in CLOCK} for record in records if "loss" in record]


def last_lines(workdir: Path) -> dict[float, dict[str, float]]:
    """{step: its line}: the last one, where a step was done again."""
    return {record["step"]: record for record in lines(workdir)}


def state(workdir: Path) -> tuple[int, dict[str, str]]:
    """The step of a run's last checkpoint and {leaf: its digest}, read as a whole."""
    from moco_jax.checkpoints import verified
    from moco_jax.checkpoints.folder import steps_of

    step = steps_of(workdir / "checkpoints")[-1]
    folder = workdir / "checkpoints" / str(step)
    verified.check(folder)
    return step, {name: entry[-1] for name, entry in verified.entries(folder).items()}
