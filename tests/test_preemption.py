"""`train.py` asked to stop, and a process that dies: nothing is lost, nobody waits for ever."""

import functools
import os
import signal
import time

import pytest

from benchmarks import runs
from moco_jax.checkpoints.store import exclusive

TOTAL, EPOCHS = 100, 25  # long enough that a signal comes before the end on a busy machine as well
PAIRED, PAIRED_EPOCHS = 40, 10  # ... of two processes, whose steps are slow
SETTINGS = {"checkpoint.every_epochs": 10}
pytestmark = pytest.mark.usefixtures("interruptible")
ENDS = {signal.SIGTERM: 143, signal.SIGINT: 130}
PATHS = {path: f"--config.data.path={path}" for path in ("resident", "streamed")}


def start(workdir, *flags):
    """One process of four devices."""
    return runs.start(workdir, SETTINGS | {"train.epochs": EPOCHS}, *flags, devices=4)[0]


def pair(workdir, *flags):
    """Two processes of two devices each."""
    changes = SETTINGS | {"train.epochs": PAIRED_EPOCHS}
    # Each of them compiles, and no cache helps: quickly, as few steps follow.
    quick = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=0"}
    return runs.start(workdir, changes, *flags, environment=quick, devices=2, processes=2)


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(start or pair, path of the data) -> the folder of a run that nobody stopped."""
    root = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def trained(begin, path):
        workdir = root / f"{begin.__name__}_{path}"
        begun = begin(workdir, PATHS[path])
        runs.finished(begun if isinstance(begun, list) else [begun])
        return workdir

    return trained


@pytest.mark.parametrize(
    ("number", "path", "read"),
    [
        pytest.param(signal.SIGTERM, "streamed", False, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "resident", True, marks=pytest.mark.long),
    ],
)
def test_a_signal_costs_no_step(undisturbed, tmp_path, number, path, read):
    """Saved at the very step, which is no epoch's end; the same command goes on to the same bits and the same log.

    Also where nobody reads what it says any more, as in `train.py | tee` on Ctrl-C.
    """
    process = start(tmp_path, PATHS[path])
    until(process, f"step 6/{TOTAL}")
    if not read:
        process.stdout.close()
        process.stdout = None
    process.send_signal(number)
    status, out = ended(process)
    assert status == ENDS[number], (out or "")[-2000:]
    step, _ = runs.state(tmp_path)
    assert 6 <= step < TOTAL and (not read or f"the same call continues from step {step}" in out)
    assert runs.lines(tmp_path)[-1]["step"] == step  # of every step that was done a line was written
    status, out = ended(start(tmp_path, PATHS[path]))
    assert status == 0 and f"continuing at step {step}" in out
    assert runs.state(tmp_path) == runs.state(undisturbed(start, path))
    assert runs.lines(tmp_path) == runs.lines(undisturbed(start, path))


@pytest.mark.parametrize(
    ("told", "path"),
    [
        pytest.param(1, "resident", marks=pytest.mark.slow),
        pytest.param(0, "streamed", marks=pytest.mark.long),
    ],
)
def test_a_signal_to_one_process_stops_all_at_one_step(undisturbed, tmp_path, told, path):
    """Whichever it is sent to: both end alike, having saved the step that they agreed on."""
    processes = pair(tmp_path, PATHS[path])
    until(processes[0], f"step 6/{PAIRED}")
    processes[told].send_signal(signal.SIGTERM)
    outs = [ended(process) for process in processes]
    assert [status for status, _ in outs] == [143, 143], outs[told][1][-2000:]
    step, _ = runs.state(tmp_path)
    assert 6 <= step < PAIRED and runs.lines(tmp_path)[-1]["step"] == step
    assert [ended(process)[0] for process in pair(tmp_path, PATHS[path])] == [0, 0]
    assert runs.state(tmp_path) == runs.state(undisturbed(pair, path))
    assert runs.lines(tmp_path) == runs.lines(undisturbed(pair, path))


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_error_of_one_process_ends_both(tmp_path):
    """Said by the one that has it, with its own status; the other does not wait for it for ever."""
    with exclusive(tmp_path):  # which the first process alone looks at
        first, second = pair(tmp_path, "--config.train.heartbeat_seconds=10")
        begun = time.monotonic()
        status, said = ended(first, timeout=120)
        assert status == 1 and "error: another process is at work in" in said
        assert ended(second, timeout=60)[0] != 0 and time.monotonic() - begun < 90
