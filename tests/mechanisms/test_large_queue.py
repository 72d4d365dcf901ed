"""The step with queue.chunk: what it is without, to rounding, and a program that holds no array of N x K."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from moco_jax.config import Moco, Queue, Train
from tests import tiny

K, CHUNK = 88, 22  # no other array of a step has 16 x 88 elements or more of the like
STORED = tiny.images()
CASES = {
    "as it comes": {},
    "symmetric, own keys left out": {"moco": Moco(0.9, 0.2, symmetric=True), "mask": True},
    "micro-batches": {"train": Train(epochs=5, microbatch_size=4)},
    "symmetric micro-batches, own keys left out": {
        "moco": Moco(0.9, 0.2, symmetric=True),
        "train": Train(epochs=5, microbatch_size=4),
        "mask": True,
    },
}


def mechanism(case, chunk, *, double=True, **options):
    changes = dict(CASES[case])
    c = tiny.config(queue=Queue(K, changes.pop("mask", False), chunk), **changes)
    c = tiny.double(c) if double else c
    return c, tiny.mechanism(c, STORED, tiny.LIGHT, encoder=tiny.small_encoder(c, 3), **options)


@functools.cache
def left(case, chunk, devices, scan):
    """State and metrics after four steps, the queue then 73 % full, and what was compiled."""
    c, m = mechanism(case, chunk, scan=scan)
    return tiny.run(m, STORED, batch_size=16, devices=devices, steps=4, batches=tiny.batches(c, 4))


@pytest.mark.parametrize(
    ("case", "devices", "scan"),
    [
        ("as it comes", 1, False),
        ("symmetric, own keys left out", 2, False),
        ("micro-batches", 1, True),
        ("symmetric micro-batches, own keys left out", 2, False),
    ],
)
def test_steps_are_those_without_chunks(case, devices, scan, float64):
    """Parameters, statistics, momentum, queue and every metric, in float64: 1e-12 of the largest value."""
    got, expected = (left(case, chunk, devices, scan) for chunk in (CHUNK, None))
    gap, where = tiny.distance(got.state, expected.state)
    assert gap < 1e-12, f"{where}: {gap:.1e}"
    assert set(got.metrics) == set(expected.metrics) and got.metrics["own_keys"] > 0
    for name, value in expected.metrics.items():
        assert got.metrics[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name


def largest(program):
    """Elements of the largest array of a compiled program."""
    return max(np.prod([int(n) for n in s.split(",")]) for s in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", program))


def compiled(function, case, chunk):
    """The optimised program of a mechanism's function on one device, with a queue of 4,096 rows for 16 images."""
    changes = dict(CASES[case])
    c = tiny.config(queue=Queue(4096, changes.pop("mask", False), chunk), **changes)
    m = tiny.mechanism(c, STORED, tiny.LIGHT, encoder=tiny.small_encoder(c, 3), scan=True)
    state, data = jax.eval_shape(m.init), {"images": STORED}
    rows = {"ids": np.zeros((1, 16, 2), np.int32), "queue_ids": np.zeros((1, 16, 256), np.int32)}
    mapped = jax.vmap(function(m), in_axes=(None, 0, None), axis_name="batch")
    return largest(jax.jit(mapped).lower(state, rows, data).compile().as_text())


@pytest.mark.parametrize("case", ["as it comes", "symmetric micro-batches, own keys left out"])
def test_the_compiled_step_holds_no_array_of_all_logits(case):
    """Forward, backward and measures; without chunks it holds one."""
    n, step = (4 if "micro" in case else 16), lambda m: m.step
    queue = 4096 * 8
    assert compiled(step, case, 256) <= max(queue, 4096 * 8) < n * 4096 or n == 4
    assert compiled(step, case, None) >= n * 4096
