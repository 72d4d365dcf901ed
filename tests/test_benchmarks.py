"""Benchmarks are commands that people run: each runs, shrunken, and says what it promises."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from moco_jax import config, pages


@pytest.mark.slow
def test_step_time_measures_every_figure():
    """images/s, compile seconds, FLOPs, bytes, memory, share of augmentation: positive numbers of a tiny net."""
    path = Path(__file__).parents[1] / "benchmarks" / "step_time.py"
    spec = importlib.util.spec_from_file_location("step_time", path)
    step_time = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(step_time)
    page = pages.load("digits")
    page.batch_size, page.bn.group_size, page.model.width, page.queue.size = 64, 8, 4, 64
    figures = step_time.measure(config.read(page), steps=2, repeats=2)
    numbers = ("images_per_second", "step_milliseconds", "compile_seconds", "augmentation_share")
    numbers += ("flops_per_image", "bytes_per_image", "planned_bytes_per_device")
    assert all(np.isfinite(figures[n]) and figures[n] > 0 for n in numbers), figures
    assert figures["augmentation_share"] < 1 and figures["batch_size"] == 64


@pytest.mark.slow
def test_drift_begins_with_rounding(tmp_path):
    """Eight devices and micro-batches leave one device by rounding: not by nothing, and by little after three steps."""
    from benchmarks import drift

    page = pages.load("digits")
    page.batch_size, page.model.width, page.model.dim, page.queue.size = 32, 4, 8, 64
    page.data.data_dir, page.shuffle.block = str(tmp_path), 32
    rows = drift.measure(config.read(page), devices=8, steps=(1, 3), dtypes=("float32",))["rows"]["float32"]
    assert len(rows.pop("loss of one device")) == 2
    assert set(rows) == {"8 devices", "micro-batches of 4"}
    for name, differences in rows.items():
        assert set(differences) == {"parameters", "queue", "loss"}
        assert 0 < differences["parameters"][0] < 1e-5 and 0 < differences["queue"][1] < 1e-3, (name, differences)
