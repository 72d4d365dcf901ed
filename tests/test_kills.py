"""kill -9 of a saving process and of `train.py`, and a disk without space: what is left is whole, and goes on."""

import json
import os
import random
import subprocess
import sys

import pytest

from benchmarks import kills, runs


@pytest.mark.slow
def test_kills_of_a_saving_process_leave_whole_checkpoints(tmp_path):
    """Every listed one is read and compared; of the kills that are aimed at a removal some hit one."""
    found = kills.of_store(tmp_path, 6, random.Random(0))
    assert found["kills"] == 6 == sum(found["landed"].values()) and found["torn"] == []
    assert (
        found["landed"].get("inside a deletion", 0) >= 1 and found["checkpoints read"] >= 6 and found["last step"] > 0
    )


@pytest.mark.slow
def test_killed_training_ends_in_the_state_of_an_undisturbed_run(tmp_path):
    """Four kills of `train.py` at random moments, started again each time until it ends: bit for bit."""
    found = kills.of_training(tmp_path, 4, random.Random(0), epochs=12)
    assert found["kills"] == 4 and found["torn"] == []
    assert found["landed"].get("before the first step", 0) <= 2
    assert found["runs that ended in the state of the undisturbed one"] == found["runs"] >= 1


def test_a_torn_checkpoint_is_counted(tmp_path):
    """What the kills are judged by sees a file that lacks."""
    from moco_jax.checkpoints import folder

    writer = folder.Writer(tmp_path, keep=2)
    for step in (1, 2):
        writer.start(step, kills.state_at(step), {"format": 1})
        assert writer.finish() is None
    assert kills.torn(tmp_path) == {} and kills.landed(tmp_path) == "between"
    (tmp_path / "1/digests/metadata").unlink()
    assert list(kills.torn(tmp_path)) == [1]
    (tmp_path / folder.TRASH).mkdir(exist_ok=True)
    (tmp_path / "1").rename(tmp_path / folder.TRASH / "1")
    assert kills.landed(tmp_path) == "inside a deletion"
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    assert kills.landed(tmp_path) == "inside a save"


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_run_without_space_trains_on_says_so_and_ends_with_an_error(tmp_path):
    """No file of more than 30 kB can be written: `train.py` reaches its last step, exits with 1, and goes on later."""
    command = [*runs.TRAIN, f"--workdir={tmp_path / 'run'}", *runs.overrides({})]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipes = {"cwd": runs.ROOT, "env": environment, "text": True, "capture_output": True, "check": False}
    ran = subprocess.run([sys.executable, "-c", LIMITED, *command], **pipes)
    assert ran.returncode == 1, ran.stderr[-2000:]
    assert "step 24/24" in ran.stdout and ran.stdout.count("could not be written") == 5  # the sixth is the error
    assert ran.stderr.strip().splitlines()[-1].startswith("error: checkpoint ") and "there is no other" in ran.stderr
    assert "Traceback" not in ran.stderr and "ERROR" not in ran.stderr  # nothing of orbax's before it or after it
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == []
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert sum(r.get("event") == "warning" for r in log) == 5
    ran = subprocess.run([sys.executable, *command], **pipes)
    assert ran.returncode == 0 and "checkpoints/24" in ran.stdout, ran.stderr[-2000:]
