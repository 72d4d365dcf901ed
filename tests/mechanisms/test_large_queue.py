"""The step with queue.chunk: what it is without, to rounding, and a program that holds no array of N x K."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest

from moco_jax.config import Moco, Queue, Train
from tests import tiny

K, CHUNK = 88, 22
LARGE, DIM = 16 * 1021, 7  # a queue whose rows times those of a batch, or of a part of it, no other array reaches
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
        pytest.param("symmetric, own keys left out", 2, False, marks=pytest.mark.long),
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


def sizes(function, case, chunk):
    """Elements of every array of the optimised program of (state, batch, data) -> ..., on one device."""
    changes = dict(CASES[case])
    c = tiny.config(queue=Queue(LARGE, changes.pop("mask", False), chunk), **changes)
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, dim=DIM))
    m = tiny.mechanism(c, STORED, tiny.LIGHT, encoder=tiny.small_encoder(c, 3), scan=True)
    state, data = jax.eval_shape(m.init), {"images": STORED}
    rows = {"ids": np.zeros((1, 16, 2), np.int32), "queue_ids": np.zeros((1, 16, -(-LARGE // 16)), np.int32)}
    mapped = jax.vmap(functools.partial(function, m), in_axes=(None, 0, None), axis_name="batch")
    program = jax.jit(mapped).lower(state, rows, data).compile().as_text()
    return {math.prod(map(int, s.split(","))) for s in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", program)}


def step(m, *arguments):
    return m.step(*arguments)


def hits(m, *arguments):
    """What the leak alarm takes of the forward."""
    return m.contrast(*arguments).hits


@pytest.mark.parametrize(
    ("function", "case"),
    [
        pytest.param(step, "as it comes", marks=pytest.mark.long),
        (step, "symmetric micro-batches, own keys left out"),
        (hits, "symmetric, own keys left out"),
    ],
)
def test_the_compiled_program_holds_no_array_of_all_logits(function, case):
    """Forward, backward, mask, measures and leak alarm: the queue is its largest array; without chunks logits are."""
    logits = (4 if "micro" in case else 16) * LARGE
    queue = DIM * LARGE
    chunked, plain = (sizes(function, case, chunk) - {queue} for chunk in (LARGE // 16, None))
    assert max(chunked) < logits <= max(plain)


@pytest.mark.parametrize("chunk", [None, CHUNK])
def test_hits_are_those_of_the_logits_row_by_row(chunk):
    """Of both directions, own keys left out, in parts of four images: what a mean over all would not tell."""
    c, m = mechanism("symmetric micro-batches, own keys left out", chunk, double=False)
    batch = tiny.batches(c, 1)[0]
    found = jax.jit(jax.vmap(m.contrast, axis_name="batch", in_axes=(None, 0, None)))(
        jax.jit(m.init)(), jax.tree.map(lambda a: a[None], batch), {"images": STORED}
    )
    logits, hits = np.asarray(found.logits[0]), np.asarray(found.hits[0])
    assert hits.shape == logits.shape[:2] == (2, 16)
    np.testing.assert_array_equal(hits, logits[..., 0] >= logits[..., 1:].max(-1))
    assert 0 < hits.sum() < hits.size
