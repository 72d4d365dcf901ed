"""`train.py` asked to stop, and a process that dies: nothing is lost, nobody waits for ever."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from benchmarks import kills
from moco_jax.checkpoints import verified
from moco_jax.checkpoints.folder import steps_of
from moco_jax.checkpoints.store import exclusive

TOTAL, EPOCHS = 100, 25  # long enough that a signal comes before the end on a busy machine as well
PAIRED, PAIRED_EPOCHS = 48, 12  # ... of two processes, whose steps are slow
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("interruptible")]
ENDS = {signal.SIGTERM: 143, signal.SIGINT: 130}
PATHS = {path: f"--config.data.path={path}" for path in ("resident", "streamed")}


def start(workdir, *flags, devices=4, **environment):
    changes = [f"--config.{key}={value}" for key, value in kills.SETTINGS.items()]
    changes += [f"--config.train.epochs={EPOCHS}", "--config.checkpoint.every_epochs=10"]
    command = [sys.executable, "-u", "train.py", f"--workdir={workdir}", *changes, *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=kills.ROOT, env=environment, **pipes)


def pair(workdir, *flags):
    """Two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    flags = (f"--config.train.epochs={PAIRED_EPOCHS}", *flags)
    return [start(workdir, *flags, devices=2, **shared, JAX_PROCESS_ID=str(i)) for i in range(2)]


def until(process, text):
    """Read what a process says up to a line with `text`."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen[-20:]))


def ended(process, timeout=300):
    out, _ = process.communicate(timeout=timeout)
    return process.returncode, out


def state_of(workdir):
    """{leaf: digest} of the newest checkpoint, and its step."""
    folder = workdir / "checkpoints"
    step = max(steps_of(folder))
    return {name: entry[-1] for name, entry in verified.entries(folder / str(step)).items()}, step


def lines_of(workdir):
    """The numbers of every line of the log but for the clock, the last try of each step."""
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return {r["step"]: {k: v for k, v in r.items() if k != "images_per_second"} for r in lines if "loss" in r}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    for path in PATHS:
        for name, begin in (("one", lambda *given: [start(*given)]), ("two", pair)):
            run = begin(workdir / f"{name}_{path}", PATHS[path])
            assert [ended(process)[0] for process in run] == [0] * len(run), name
    return workdir


@pytest.mark.parametrize(("number", "path"), [*zip(ENDS, PATHS, strict=True)])
def test_a_signal_costs_no_step(undisturbed, tmp_path, number, path):
    """Saved at the very step, which is no epoch's end; the same command goes on to the same bits and the same log."""
    process = start(tmp_path, PATHS[path])
    until(process, f"step 6/{TOTAL}")
    process.send_signal(number)
    status, out = ended(process)
    assert status == ENDS[number], out[-2000:]
    _, step = state_of(tmp_path)
    assert 6 <= step < TOTAL and f"the same call continues from step {step}" in out
    assert max(lines_of(tmp_path)) == step  # of every step that was done a line was written
    status, out = ended(start(tmp_path, PATHS[path]))
    assert status == 0 and f"continuing at step {step}" in out
    assert state_of(tmp_path) == state_of(undisturbed / f"one_{path}")
    assert lines_of(tmp_path) == lines_of(undisturbed / f"one_{path}")


@pytest.mark.parametrize(("told", "path"), [*enumerate(PATHS)])
def test_a_signal_to_one_process_stops_all_at_one_step(undisturbed, tmp_path, told, path):
    """Whichever it is sent to: both end alike, having saved the step that they agreed on."""
    processes = pair(tmp_path, PATHS[path])
    until(processes[0], f"step 6/{PAIRED}")
    processes[told].send_signal(signal.SIGTERM)
    outs = [ended(process) for process in processes]
    assert [status for status, _ in outs] == [143, 143], outs[told][1][-2000:]
    step = state_of(tmp_path)[1]
    assert 6 <= step < PAIRED and max(lines_of(tmp_path)) == step
    assert [ended(process)[0] for process in pair(tmp_path, PATHS[path])] == [0, 0]
    assert state_of(tmp_path) == state_of(undisturbed / f"two_{path}")
    assert lines_of(tmp_path) == lines_of(undisturbed / f"two_{path}")


def test_a_dead_peer_ends_the_other(tmp_path):
    """Within the heartbeat and what JAX takes to end: by JAX, or by us where a collective fails before JAX knows."""
    first, second = pair(tmp_path, "--config.train.heartbeat_seconds=10", "--config.train.epochs=2000")
    until(first, "a process that dies ends the others within 10 s")
    until(first, "step 6/")
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    status, said = ended(first, timeout=120)
    assert status in (-signal.SIGABRT, 134) and time.monotonic() - killed < 60
    assert status != 134 or ("error: another process of this run has ended" in said and "Traceback" not in said)


def test_an_error_of_one_process_ends_both(tmp_path):
    """Said by the one that has it, with its own status; the other does not wait for it for ever."""
    with exclusive(tmp_path):  # which the first process alone looks at
        first, second = pair(tmp_path, "--config.train.heartbeat_seconds=10")
        begun = time.monotonic()
        status, said = ended(first, timeout=120)
        assert status == 1 and "error: another process is at work in" in said
        assert ended(second, timeout=60)[0] != 0 and time.monotonic() - begun < 90
