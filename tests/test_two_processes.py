"""Two loopback processes of two devices equal one process of four, through the whole of `train`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moco_jax import config, parallel, pretrain
from moco_jax.checkpoints.store import Store
from moco_jax.data.sources import ArraySource
from tests import tiny

ROOT = Path(__file__).parents[1]


def start(workdir, devices, **environment):
    command = [sys.executable, "-m", "tests.two_processes", str(workdir), str(devices)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **pipes)


def finished(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:]
    return out


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, float64):
    """Groups over two devices of one process, a block over all four; batches, state, checkpoint and log included."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    pair = [start(tmp_path / "two", 2, **shared, JAX_PROCESS_ID=str(i)) for i in range(2)]
    outs = [finished(p) for p in pair]
    assert "4 x cpu in 2 processes" in outs[0] and "step 4/4" in outs[0]
    assert "step 4/4" not in outs[1]  # one process speaks
    assert "4 x cpu in 1 process" in finished(start(tmp_path / "one", 4))

    states = []
    for name in ("one", "two"):
        store = Store(tmp_path / name / "checkpoints", read_only=True)
        c = config.read(store.about(4)["config"])
        parts = pretrain.assemble(c, source=ArraySource(tiny.images(), name="tiny"))
        states.append(parallel.host(store.restore(4, parallel.abstract(parts.mechanism.init))))
    gap, where = tiny.distance(states[1], states[0])
    assert gap < 1e-10, f"{where}: {gap:.1e}"
