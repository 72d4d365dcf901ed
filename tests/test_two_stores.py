"""Checkpoints of two processes: the first writes and decides, both end alike, and neither waits for one that failed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_process_0_decides_and_a_failure_of_one_ends_both(tmp_path):
    """A damaged newest step, a step that process 1 alone cannot read, none that is whole, a last save that fails."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-m", "tests.two_stores", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pair = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | shared | {"JAX_PROCESS_ID": str(i)}, **pipes)
        for i in range(2)
    ]
    outs = [p.communicate(timeout=600) for p in pair]
    assert [p.returncode for p in pair] == [0, 0], outs
    first, second = (
        dict(line.split(": ", 1) for line in out.splitlines() if ": " in line and "[Gloo]" not in line)
        for out, _ in outs
    )
    assert first["files of others"] == second["files of others"] == "[]"
    assert first["whole"].startswith("(2, ['checkpoint ") and "was moved to" in first["whole"]
    assert second["whole"] == "(2, [])" and (tmp_path / "damaged/3").is_dir()
    assert first["restored"] == second["restored"] == str([float(i) for i in range(12)])
    assert "process 1 cannot use it, and says why" in first["one cannot"]
    assert "2 is damaged (its state cannot be read: here)" in second["one cannot"]
    assert "is whole (2: its digests cannot be read" in first["none"] and "process 0 says why" in second["none"]
    assert "OSError" in first["last"] and "other/2 could not be written (OSError: full)" in first["last"]
    assert "OSError: process 0 could not write the last checkpoint" in second["last"]
