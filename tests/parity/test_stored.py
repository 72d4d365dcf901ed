"""Stored expected values change only on purpose: this list changes with them, and both are seen in a review."""

import hashlib
from pathlib import Path

import pytest

STORED = {
    "data/probe.npz": "56006400d5c197c8",
    "fb_golden/inputs.py": "2d255510528d7fb3",
    "fb_golden/lr_schedules.npz": "a92e63f876adfe9f",
    "fb_golden/v1_r18.npz": "9dc01ecf354e551c",
    "golden/augmentation.npz": "0aced6bdd8f0f41d",
    "golden/network.npz": "a0414ec92b70a353",
    "golden/step_v1_resnet18.npz": "8545d3991f1b424e",
    "golden/step_v1_tiny.npz": "378d235548de47c1",
    "golden/step_v2_resnet50.npz": "f56834612d8ac491",
    "golden/step_v2_tiny_symmetric.npz": "612893d985596ea9",
}


@pytest.mark.parametrize("name", sorted(STORED))
def test_stored_values_are_those_that_were_reviewed(name):
    """None of them was written anew in passing."""
    content = (Path(__file__).parent / name).read_bytes()
    assert hashlib.sha256(content).hexdigest()[:16] == STORED[name]


def test_every_stored_value_is_listed():
    """A new file is reviewed too."""
    here = Path(__file__).parent
    files = {p.relative_to(here).as_posix() for p in here.rglob("*.npz")}
    assert files == {name for name in STORED if name.endswith(".npz")}
