"""Two loopback processes of two devices equal one process of four, through the whole of `train`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moco_jax import assembly, config, parallel
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


@pytest.mark.long
def test_two_processes_equal_one(tmp_path, float64):
    """Symmetric, own keys left out, groups over two devices of one process, a block over all four, eight steps.

    Resident, and streamed from the weights of the resident one; batches, state, checkpoint, alarm, key consistency, a
    probe and fine-tuning included.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    pair = [start(tmp_path / "two", 2, **shared, JAX_PROCESS_ID=str(i)) for i in range(2)]
    outs = [finished(p) for p in pair]
    assert outs[0].count("4 x cpu in 2 processes 8") == 2 and outs[0].count("step 8/8") == 2
    assert "step 8/8" not in outs[1]  # one process speaks
    for out in outs:
        assert "refused: the state differs between processes" in out
    assert finished(start(tmp_path / "one", 4)).count("4 x cpu in 1 process 8") == 2

    states = {}
    for run in ("one/resident", "one/streamed", "two/resident", "two/streamed"):
        store = Store(tmp_path / run / "checkpoints", read_only=True)
        c = config.read(store.about(8)["config"])
        assert c.data.path == run.split("/")[1]
        own = {"source": ArraySource(tiny.images(), name="tiny"), "encoder": tiny.small_encoder(c, 3)}
        parts = assembly.assemble(c, **own)
        states[run] = parallel.host(store.restore(8, parallel.abstract(parts.mechanism.init)))
    for path in ("resident", "streamed"):
        gap, where = tiny.distance(states[f"two/{path}"], states[f"one/{path}"])
        assert gap < 1e-10, f"{path}{where}: {gap:.1e}"  # rounding leaves 7e-16
        logs = [(tmp_path / name / path / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
        one, two = ([r for r in map(json.loads, lines) if "leak" in r] for lines in logs)
        assert one == two and one[-1]["step"] == 8
        one, two = ([r for r in map(json.loads, lines) if "key_age_100" in r] for lines in logs)
        assert (
            one[-1]["step"] == 8 and one[-1]["key_age_100"] == 2 and one == [pytest.approx(r, abs=1e-10) for r in two]
        )
    assert tiny.distance(states["one/resident"], states["one/streamed"])[0] > 1e-3  # other crops: another run
    begun = json.loads((tmp_path / "two/streamed/config.json").read_text())["init"]
    assert (begun["layout"], begun["step"]) == ("a run's folder, step 8", 8)
    for name in ("linear/trained", "finetune/draw_1"):
        one, two = (losses(tmp_path / n / "resident" / name / "log.jsonl") for n in ("one", "two"))
        assert len(one) >= 3 and one == pytest.approx(two, abs=1e-10), name
    for name in ("linear", "finetune"):
        one, two = (json.loads((tmp_path / n / "resident" / name / "result.json").read_text()) for n in ("one", "two"))
        del one["about"]["encoder"], two["about"]["encoder"]  # digests: the runs agree to rounding
        assert one == two


def losses(log):
    """The losses that a log holds."""
    return [r["loss"] for r in map(json.loads, log.read_text().splitlines()) if "loss" in r]
