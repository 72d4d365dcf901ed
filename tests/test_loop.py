"""The loop with a step that only counts: what happens when, and what never does."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import loop, parallel
from moco_jax.logs import RunLog


def cadence(**changes):
    return loop.Cadence(**{"total": 10, "per_call": 1, "log": 4, "save": 3} | changes)


def go(tmp_path, c, first=0, loss=lambda step: 1.0, events=None, evaluations=(), **rate):
    """Run over a fake step that adds up its batches; returns (final state, events in order)."""
    events = [] if events is None else events

    def step(state, batch, data):
        counts = np.asarray(batch["ids"])[0, :, 0, 0]
        events.append(("step", list(counts)))
        losses = jnp.asarray([loss(int(c)) for c in counts])
        return state + counts.sum(), {"loss": losses}

    def save(step, state, unlogged):
        events.append(("save", step))

    def logged(name, results):
        def evaluate(state):
            events.append((name, int(state)))
            return results

        return evaluate

    evaluations = [loop.Evaluation(every, logged(name, results)) for name, every, results in evaluations]
    # Row values name the step whose batch this is, so a batch that is skipped or repeated shows.
    batches = ({"ids": np.full((8, 2), i + 1, np.int32)} for i in range(first, c.total))
    with RunLog(tmp_path, total_steps=c.total, first_step=first, batch_size=8) as log:
        about = {"first_step": first, "cadence": c, "log": log, "evaluations": evaluations, "save": save}
        return loop.run(step, 0, batches, {}, **about, **rate), events


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("per_call", [1, 4])
def test_every_batch_once_and_everything_when_due(tmp_path, per_call):
    """Several steps per call end where something is due, so that nothing moves; evaluators have their own cadence."""
    kinds = (("knn", 5, {"knn_top1": 0.5}), ("alarm", 7, {"leak": 0.0}))
    state, events = go(tmp_path, cadence(per_call=per_call), evaluations=kinds)
    assert state == sum(range(1, 11))
    assert [e for e in events if e[0] == "save"] == [("save", s) for s in (3, 6, 9, 10)]
    assert [e for e in events if e[0] in ("knn", "alarm")] == [("knn", 15), ("alarm", 28), ("knn", 55), ("alarm", 55)]


def test_resumes_in_the_middle(tmp_path):
    """From step 7: the three batches left, and what is due after them."""
    state, events = go(tmp_path, cadence(), first=7)
    assert state == 8 + 9 + 10
    assert [e[1] for e in events if e[0] == "save"] == [9, 10]


def test_never_is_never(tmp_path):
    """0 switches an evaluation off, at the end too."""
    _, events = go(tmp_path, cadence(), evaluations=(("knn", 0, {"knn_top1": 0.5}),))
    assert not [e for e in events if e[0] == "knn"]


def test_a_warning_of_an_evaluator_is_logged_and_said_and_its_numbers_too(tmp_path, capsys):
    """One record with the text beside the numbers; on the console a line for each. Without a warning none is said."""
    go(tmp_path, cadence(), evaluations=(("alarm", 0, {}), ("alarm", 10, {"leak": 0.25, "warning": "keys leak"})))
    assert lines(tmp_path)[-2:] == [
        {"step": 10, "leak": 0.25, "warning": "keys leak"},
        {"event": "evaluated", "step": 10},
    ]
    said = capsys.readouterr().out
    assert "step 10  leak 0.25\nwarning: keys leak\n" in said
    go(tmp_path, cadence(), evaluations=(("alarm", 10, {"leak": 0.0}),))
    assert "warning" not in capsys.readouterr().out


def test_log_holds_the_mean_over_the_steps_since_the_last_one(tmp_path):
    """Losses 1..10 logged every 4 steps, after the first step, and at the end."""
    go(tmp_path, cadence(save=100), loss=float)
    records = lines(tmp_path)
    assert [(r["step"], r["loss"]) for r in records] == [(1, 1.0), (4, 3.0), (8, 6.5), (10, 9.5)]
    assert records[0]["images_per_second"] is None  # the first call compiles


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path):
    """Step 5 is NaN: the save at 6 does not happen, that at 3 stays; whose rate it is, the loop does not know."""
    events = []
    with pytest.raises(FloatingPointError, match="the loss is nan within the steps up to 6") as error:
        go(tmp_path, cadence(), loss=lambda s: float("nan") if s == 5 else 1.0, events=events)
    assert [e for e in events if e[0] == "save"] == [("save", 3)]
    assert str(error.value).endswith("use another --workdir with a lower learning rate")


@pytest.mark.parametrize(("log", "save"), [(1, 0), (5, 5), (4, 5)])
def test_the_rate_that_should_be_lower_is_the_caller_s(tmp_path, log, save):
    """Wherever the loss is looked at: before the next call, before an evaluation and before a save."""
    with pytest.raises(FloatingPointError, match="with a lower fit.rate$"):
        go(tmp_path, cadence(log=log, save=save), loss=lambda s: float("nan") if s == 5 else 1.0, rate="fit.rate")


def test_positions_cover_the_global_batch():
    """One process holds all rows in order."""
    np.testing.assert_array_equal(parallel.positions(16), np.arange(16))
