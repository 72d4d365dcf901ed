"""The loop with a step that only counts: what happens when, and what never does."""

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import loop, parallel
from moco_jax.logs import RunLog


def cadence(**changes):
    return loop.Cadence(**{"total": 10, "per_call": 1, "log": 4, "evaluate": 5, "save": 3} | changes)


def go(tmp_path, c, first=0, loss=lambda step: 1.0, events=None):
    """Run over a fake step that adds up its batches; returns (final state, events in order)."""
    events = [] if events is None else events

    def step(state, batch, data):
        counts = np.asarray(batch["ids"])[0, :, 0, 0]
        events.append(("step", list(counts)))
        losses = jnp.asarray([loss(int(c)) for c in counts])
        return state + counts.sum(), {"loss": losses}

    def save(step, state):
        events.append(("save", step))

    def evaluate(state):
        events.append(("evaluate", int(state)))
        return {"knn_top1": 0.5}

    # Row values name the step whose batch this is, so a batch that is skipped or repeated shows.
    batches = ({"ids": np.full((8, 2), i + 1, np.int32)} for i in range(first, c.total))
    with RunLog(tmp_path, total_steps=c.total, first_step=first, batch_size=8) as log:
        state = loop.run(step, 0, batches, {}, first_step=first, cadence=c, log=log, evaluators=[evaluate], save=save)
    return state, events


@pytest.mark.parametrize("per_call", [1, 4])
def test_every_batch_once_and_everything_when_due(tmp_path, per_call):
    """Several steps per call end where something is due, so that nothing moves."""
    state, events = go(tmp_path, cadence(per_call=per_call))
    assert state == sum(range(1, 11))
    assert [e for e in events if e[0] == "save"] == [("save", s) for s in (3, 6, 9, 10)]
    assert [e for e in events if e[0] == "evaluate"] == [("evaluate", 15), ("evaluate", 55)]


def test_resumes_in_the_middle(tmp_path):
    """From step 7: the three batches left, and what is due after them."""
    state, events = go(tmp_path, cadence(), first=7)
    assert state == 8 + 9 + 10
    assert [e[1] for e in events if e[0] == "save"] == [9, 10]


def test_never_is_never(tmp_path):
    """0 switches an evaluation off, at the end too."""
    _, events = go(tmp_path, cadence(evaluate=0))
    assert not [e for e in events if e[0] == "evaluate"]


def test_log_holds_the_mean_over_the_steps_since_the_last_one(tmp_path):
    """Losses 1..10 logged every 4 steps, after the first step, and at the end."""
    import json

    go(tmp_path, cadence(save=100, evaluate=0), loss=float)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in records] == [(1, 1.0), (4, 3.0), (8, 6.5), (10, 9.5)]
    assert records[0]["images_per_second"] is None  # the first call compiles


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path):
    """Step 5 is NaN: the save at 6 does not happen, that at 3 stays."""
    events = []
    with pytest.raises(FloatingPointError, match="the loss is nan within the steps up to 6"):
        go(tmp_path, cadence(), loss=lambda s: float("nan") if s == 5 else 1.0, events=events)
    assert [e for e in events if e[0] == "save"] == [("save", 3)]


def test_positions_cover_the_global_batch():
    """One process holds all rows in order."""
    np.testing.assert_array_equal(parallel.positions(16), np.arange(16))
