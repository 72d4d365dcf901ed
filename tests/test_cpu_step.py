"""The comparison of a step on CPU with PyTorch's: what is compared with what, and that it runs, shrunken."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from benchmarks import cpu_step
from benchmarks.cpu_step import OURS, THEIRS, Contestant

TINY = {"model.width": 4, "model.dim": 8, "queue.size": 64, "batch_size": 16, "bn.group_size": 8, "shuffle.block": 16}


def test_ratios_are_of_one_turn_and_one_kind_of_batch_norm():
    """Medians of ratios, turn by turn, with PyTorch's fastest of the same batch norm: plain with plain alone."""
    turns = {
        "ours": [(2.0, 4.0), (4.0, 4.0), (20.0, 4.0)],
        "ours, plain": [(1.0, 1.0)] * 3,
        "pytorch": [(9.0, 9.0)] * 3,
        "pytorch, channels last": [(1.0, 5.0), (3.0, 5.0), (40.0, 5.0)],
        "pytorch, plain": [(0.25, 3.0)] * 3,
    }
    found = cpu_step.compared(turns, batch_size=8)
    assert found["ours_over_pytorch"] == {
        "ours": {"speed": 0.75, "of": "pytorch, channels last", "CPU seconds": 1.25},
        "ours, plain": {"speed": 0.25, "of": "pytorch, plain", "CPU seconds": 3.0},
    }
    assert found["images_per_second"]["ours"] == 2.0 and found["best_images_per_second"]["ours"] == 4.0
    assert found["cpu_milliseconds_per_image"]["ours"] == 500.0
    assert found["seconds_over_those_of_ours"] == {"ours, plain": 0.25}
    alone = cpu_step.compared({"ours": [(1.0, 1.0)]}, batch_size=1)
    assert alone["ours_over_pytorch"] == {}


def test_ready_views_need_nothing_more():
    """All contestants train the page but for how its views come, and for batch norm where it is plain."""
    grouped, plain, augmented = (
        cpu_step.page_of("digits", {"batch_size": 64}, Contestant(plain=p, augmented=a))
        for p, a in ((False, False), (True, False), (False, True))
    )
    assert (grouped.bn.group_size, plain.bn.group_size) == (32, 0) and grouped.batch_size == 64
    assert (grouped.data.range, grouped.data.mean, grouped.data.std) == ((0.0, 1.0), (0.0,), (1.0,))
    assert (augmented.data.range, augmented.data.mean) == (None, (0.305,))


@pytest.mark.slow
def test_both_take_turns_and_learn(tmp_path, monkeypatch, capfd):
    """The whole command on a tiny net: each contestant in a process of its own, PyTorch where it is installed."""
    with_torch = importlib.util.find_spec("torch") is not None
    some = {
        "ours": Contestant(),
        "ours, 2 devices": Contestant(devices=2),
        "ours, augmenting": Contestant(augmented=True),
        "pytorch": Contestant(THEIRS),
    }
    monkeypatch.setattr(cpu_step, "CONTESTANTS", some)
    monkeypatch.setattr(cpu_step, "MODELS", {"tiny": ("digits", TINY)})
    out = tmp_path / "out.json"
    named = ["--models=tiny", "--repeats=2", "--seconds=0.01", f"--output={out}"]
    monkeypatch.setattr(sys, "argv", ["cpu_step", *named])
    assert cpu_step.main() == 0
    found = json.loads(out.read_text())
    tiny = found["models"]["tiny"]
    took_part = [n for n, c in some.items() if c.library == OURS or with_torch]
    assert list(tiny["images_per_second"]) == took_part and ("torch" in found["versions"]) == with_torch
    assert all(np.isfinite(v) and v > 0 for v in tiny["images_per_second"].values())
    assert set(tiny["compile_seconds"]) == {n for n in took_part if n.startswith("ours")}
    assert set(tiny["ours_over_pytorch"]) == (set(tiny["compile_seconds"]) if with_torch else set())
    capfd.readouterr()


def test_a_model_that_is_not_there_is_named(monkeypatch, capsys):
    """One line that lists those that are."""
    monkeypatch.setattr(sys, "argv", ["cpu_step", "--models=width17"])
    assert cpu_step.main() == 1
    assert "width16" in capsys.readouterr().err
