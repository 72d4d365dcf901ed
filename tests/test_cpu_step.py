"""The comparison of a step on CPU with PyTorch's: what is compared with what, and that it runs, shrunken."""

import importlib.util
import json
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from benchmarks import cpu_step
from benchmarks.cpu_step import OURS, THEIRS, Contestant
from moco_jax.cli import xla

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
    assert found["images_per_second"]["ours"] == 2.0 and found["lowest_and_highest"]["ours"] == [0.4, 4.0]
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


def test_flags_come_beside_those_of_the_environment(monkeypatch):
    """And devices, and whose step it is: what a contestant's process is told."""
    seen = {}

    def start(command, *, env, **options):
        seen.update(env=env, command=command)
        said = [cpu_step.MARK + json.dumps({"compile_seconds": None, "losses": [1.0, 2.0]})]
        return SimpleNamespace(stdout=iter(said), args=command)

    monkeypatch.setattr(cpu_step.subprocess, "Popen", start)
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    process = cpu_step.Process("digits", TINY, Contestant(devices=2, xla_flags="--xla_b=2"))
    assert process.about["losses"] == [1.0, 2.0]
    assert seen["env"]["XLA_FLAGS"] == "--xla_a=1 --xla_b=2" and seen["env"]["JAX_NUM_CPU_DEVICES"] == "2"
    assert Contestant(*json.loads(seen["command"][-1])[2]) == Contestant(devices=2, xla_flags="--xla_b=2")


def test_each_is_first_in_turn(monkeypatch):
    """What comes first finds other caches, and another moment, than what comes last."""
    order = []

    class Fake:
        about: ClassVar = {"compile_seconds": None, "losses": [1.0, 2.0]}

        def __init__(self, page, changes, contestant):
            self.name = contestant.devices

        def timed(self, steps):
            order.append(self.name)
            return [1.0, 1.0]

        def end(self):
            pass

    monkeypatch.setattr(cpu_step, "Process", Fake)
    some = {f"ours, {n}": Contestant(devices=n) for n in (1, 2)} | {"ours": Contestant(devices=3)}
    cpu_step.measure("digits", {}, some, repeats=4, seconds=1)
    assert order == [1, 2, 3, *(1, 2, 3), *(2, 3, 1), *(3, 1, 2), *(1, 2, 3)]  # once to be counted, then four turns


@pytest.mark.long
def test_both_take_turns_and_train(tmp_path, monkeypatch, capfd):
    """The whole command on a tiny net: each contestant in a process of its own, PyTorch where it is installed."""
    with_torch = importlib.util.find_spec("torch") is not None
    some = {
        "ours": Contestant(),
        "ours, 2 devices": Contestant(devices=2),
        "ours, augmenting": Contestant(augmented=True),
        "pytorch, channels last": Contestant(THEIRS, channels_last=True),
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
    # Two steps of each, of the same loss over the same number of keys, between which something was learnt.
    losses = np.array(list(tiny["first_losses"].values()))
    assert losses.shape == (len(took_part), 2) and (losses[:, 0] != losses[:, 1]).all()
    assert (np.abs(losses - np.log(1 + TINY["queue.size"])) < 1.5).all(), losses
    assert set(tiny["compile_seconds"]) == {n for n in took_part if n.startswith("ours")}
    assert set(tiny["ours_over_pytorch"]) == (set(tiny["compile_seconds"]) if with_torch else set())
    capfd.readouterr()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--models=digits,width17", "width16"),
        ("--repeats=0", "--repeats must be 1 or more"),
        ("--output=/nowhere/at/all.json", "there is no such folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(monkeypatch, capsys, flag, said):
    """One line."""
    monkeypatch.setattr(cpu_step, "measure", None)
    monkeypatch.setattr(sys, "argv", ["cpu_step", flag])
    assert cpu_step.main() == 1
    assert said in capsys.readouterr().err


def test_contestants_flags_are_not_those_of_commands():
    """Jaxlib's choice and no barriers are the other way round."""
    ours = dict([xla.EIGEN, xla.BARRIERS])
    for flag in (cpu_step.JAXLIBS_CHOICE, cpu_step.NO_BARRIERS):
        name, value = flag.split("=")
        assert value != ours.pop(name)
    assert ours == {} and "+" in cpu_step.JAXLIBS_CHOICE
