"""The shipped step against what Facebook's own code computed, and that the comparison can fail."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parity import against_golden, differences

FOLDER = Path(__file__).parent / "fb_golden"
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_ten_steps_equal_the_originals():
    """ResNet-18, two ranks, a queue that wraps: losses, logits, queue, parameters, momentum; see against_golden.

    In a process with flags of its own: double precision is fastest as jaxlib would have it, and much is computed.
    """
    command = [sys.executable, "-m", "tests.parity.against_golden", str(FOLDER), "v1_r18"]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(re.findall(r"^  (\S.*?) +\S+  within ", done.stdout, re.MULTILINE)) == {
        "inputs",
        "initial tensors",
        "tensors",
        "running statistics",
        "logits",
        "loss",
        "loss per rank",
        "accuracy per rank",
        "queue",
        "pointer",
        "momentum",
        "learning rate",
    }


def test_rows_put_interleaved_groups_together():
    """The notebook's image i is in group i mod 4; ours are consecutive, and everything is put back."""
    rows = against_golden.rows_of({"code": "demo", "world": 1, "per_rank": 8, "bn_splits": 4})
    np.testing.assert_array_equal(rows.order, [0, 4, 1, 5, 2, 6, 3, 7])
    assert rows.group == 2
    theirs = np.random.default_rng(0).permutation(8)
    images = np.arange(8) * 10
    shuffled = images[rows.order][rows.permutation(theirs)]  # what our encoder sees
    np.testing.assert_array_equal(shuffled, images[theirs][rows.order])
    columns = np.arange(16)
    rows.note(columns, 8, 0)  # the last eight
    np.testing.assert_array_equal(columns, [*range(8), *(8 + rows.order)])


def test_differences_are_seen():
    """The largest difference counts, nan is larger than all, and beyond its tolerance it is named."""
    worst = differences.Worst()
    worst.see("loss", [1e-13, -3e-13], "step 1")
    worst.see("loss", 2e-13, "step 2")
    assert worst["loss"] == (3e-13, "step 1") and not against_golden.beyond(worst)
    worst.see("pointer", 1, "step 1")
    worst.see("queue", np.nan, "step 1")
    worst.see("queue", 1.0, "step 2")
    assert np.isnan(worst["queue"][0]) and against_golden.beyond(worst) == ["pointer", "queue"]


def test_a_folder_without_results_is_told(tmp_path):
    """Neither a missing reader nor a missing case passes as agreement."""
    with pytest.raises(SystemExit, match="no inputs.py"):
        against_golden.main([str(tmp_path)])
    shutil.copy(FOLDER / "inputs.py", tmp_path)
    for cases in ([], ["v1_r18"], ["v9"]):
        with pytest.raises(SystemExit, match="no results"):
            against_golden.main([str(tmp_path), *cases])


def test_the_command_ends_with_1_beyond_a_tolerance(monkeypatch, capsys):
    """0 where all agree; 1 where one quantity of one case does not, and the line says which."""
    results = {"v1_r18": differences.Worst(loss=(1e-13, "step 1"))}
    monkeypatch.setattr(against_golden, "compare", lambda folder, case: results[case])
    assert against_golden.main([str(FOLDER)]) == 0
    results["v1_r18"]["queue"] = (1e-8, "step 3")
    assert against_golden.main([str(FOLDER), "v1_r18"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "BEYOND" in line] == ["queue"]


def test_the_recorded_rates_are_those_of_our_schedules(float64):
    """v2's cosine over ten epochs of one step each, and v1's constant rate."""
    cases = against_golden.load(FOLDER).CASES
    assert against_golden.rate_of(cases["v1_r18"], 7) == 0.03
    published = 0.03 * 0.5 * (1 + np.cos(np.pi * np.arange(10) / 10))
    ours = [against_golden.rate_of(cases["v2_r18"], s) for s in range(10)]
    np.testing.assert_allclose(ours, published, rtol=0, atol=1e-16)
