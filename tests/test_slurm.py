"""`train.py` under Slurm, with Slurm played by its environment: two processes find each other and equal one."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from moco_jax import assembly, config, parallel
from moco_jax.checkpoints.store import Store
from moco_jax.checkpoints.verified import leaves
from tests import tiny
from tests.test_two_processes import ROOT, finished

RUN = {
    "data.dataset": None,
    "data.split": "train",
    "batch_size": 16,
    "model.width": 4,
    "model.dtype": "float64",
    "bn.group_size": 8,  # two devices, of one process
    "shuffle.block": 16,  # all four, of both
    "queue.size": 40,  # wraps inside a batch
    "train.epochs": 2,
    "eval.every_epochs": 0,
    "leak.every_epochs": 0,
    "consistency.every_epochs": 0,
    "log.every_steps": 1,
}


def train(workdir, images, devices, **environment):
    flags = [f"--config.{key}={value}" for key, value in (RUN | {"data.array": images}).items()]
    command = [sys.executable, "train.py", "--config=digits", *flags, f"--workdir={workdir}"]
    environment |= {"JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": str(devices)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **pipes)


def saved(workdir, step):
    """The state of a step on every device that is here."""
    store = Store(workdir / "checkpoints", read_only=True)
    parts = assembly.assemble(config.read(store.about(step)["config"]))
    return leaves(store.restore(step, parallel.abstract(parts.mechanism.init)))


@pytest.mark.long  # `tests/test_launchers.py` and `tests/test_two_processes.py` show its halves
def test_two_tasks_of_slurm_equal_one_process(tmp_path, float64):
    """Eight steps over four devices: every shard of every leaf that was saved, and every loss that was logged.

    Slurm is its environment alone, and no accelerator is there: which GPUs a task gets is `test_launchers`.
    """
    np.save(tmp_path / "images.npy", tiny.images(channels=1))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        job = {"SLURM_JOB_ID": "4242", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
        job |= {"SLURM_NTASKS": "2", "JAX_COORDINATOR_PORT": str(free.getsockname()[1])}
    tasks = [
        train(tmp_path / "two", tmp_path / "images.npy", 2, **job, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in range(2)
    ]
    first, second = [finished(task) for task in tasks]
    assert "devices: 4 x cpu in 2 processes" in first and "done in" in first
    assert "devices:" not in second and "step" not in second  # one process speaks
    assert "devices: 4 x cpu in 1 process\n" in finished(train(tmp_path / "one", tmp_path / "images.npy", 4))

    two, one = (saved(tmp_path / name, 8) for name in ("two", "one"))
    assert two.keys() == one.keys() and any("batch_stats" in name for name in one) and "memory/queue" in one
    for name, leaf in two.items():
        want = np.asarray(one[name].addressable_shards[0].data)
        assert len(leaf.addressable_shards) == len(jax.devices()) == 8
        for shard in leaf.addressable_shards:
            gap = np.abs(np.asarray(shard.data) - want).max() / (np.abs(want).max() or 1.0)
            assert shard.data.dtype == want.dtype and gap < 1e-10, f"{name} on {shard.device}: {gap:.1e}"
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("two", "one")]
    two, one = ([r["loss"] for r in map(json.loads, lines) if "loss" in r] for lines in logs)
    assert len(one) == 8 and two == pytest.approx(one, abs=1e-10)
