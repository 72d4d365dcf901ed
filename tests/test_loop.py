"""The loop with a step that only counts: what happens when, and what never does."""

import contextlib
import json
from concurrent.futures import wait

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import loop, parallel
from moco_jax.logs import RunLog
from moco_jax.stopping import Stopped


def cadence(**changes):
    return loop.Cadence(**{"total": 10, "per_call": 1, "log": 4, "save": 3} | changes)


def go(tmp_path, c, first=0, loss=lambda step: 1.0, events=None, evaluations=(), skips=None, kept=None, **options):
    """Run over a fake step that adds up its batches; returns (final state, events in order).

    skips: steps that say so of themselves; kept: takes up what a save is given to be logged later.
    """
    events = [] if events is None else events

    def step(state, batch, data):
        counts = np.asarray(batch["ids"])[0, :, 0, 0]
        events.append(("step", list(counts)))
        metrics = {"loss": jnp.asarray([loss(int(c)) for c in counts])}
        if skips is not None:
            metrics["skipped"] = jnp.asarray([float(c in skips) for c in counts])
        return state + counts.sum(), metrics

    def save(step, state, unlogged):
        events.append(("save", step))
        if kept is not None:
            kept[step] = json.loads(json.dumps(unlogged))  # as a checkpoint gives it back

    def logged(name, results):
        def evaluate(state):
            events.append((name, int(state)))
            return results(state) if callable(results) else results

        return evaluate

    evaluations = [loop.Evaluation(every, logged(name, results)) for name, every, results in evaluations]
    # Row values name the step whose batch this is, so a batch that is skipped or repeated shows.
    batches = ({"ids": np.full((8, 2), i + 1, np.int32)} for i in range(first, c.total))
    with RunLog(tmp_path, total_steps=c.total, first_step=first, batch_size=8) as log:
        about = {"first_step": first, "cadence": c, "log": log, "evaluations": evaluations, "save": save}
        return loop.run(step, 0, batches, {}, **about, **options), events


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


class Asking:
    """Signals that arrive after some calls of the step, or within an evaluation."""

    def __init__(self, after=None):
        self.calls, self.after = 0, after

    def asked(self):
        self.calls += 1
        return 15 if self.calls == self.after else None

    leaving = contextlib.nullcontext


@pytest.mark.parametrize("per_call", [1, 4])
def test_asked_to_stop_it_saves_that_very_step_and_evaluates_nothing_more(tmp_path, per_call):
    """After the third call; where a save is due anyway there is one, and an evaluation is left for later."""
    events, asking, kinds = [], Asking(3 if per_call == 1 else 1), (("knn", 3, {}),)
    with pytest.raises(Stopped) as stop:
        go(tmp_path, cadence(per_call=per_call), events=events, evaluations=kinds, signals=asking)
    assert stop.value.number == 15
    assert [e for e in events if e[0] != "step"] == [("save", 3)]
    assert not any("event" in record for record in lines(tmp_path))
    events = []
    with pytest.raises(Stopped):
        go(tmp_path, cadence(save=0), events=events, signals=Asking(2))
    assert [e for e in events if e[0] == "save"] == [("save", 2)]


def test_a_stop_waits_for_a_step_that_is_not_skipped(tmp_path):
    """Diverged weights skip every step, and would take the place of a good checkpoint; asked at 4, or within 4's
    evaluation, it stops at 6, and where none counts the run ends as it does without a signal."""

    def interrupted(state):
        raise Stopped(15)

    for asking in ({"signals": Asking(4)}, {"evaluations": (("knn", 4, interrupted),)}):
        events = []
        (tmp_path / "log.jsonl").unlink(missing_ok=True)
        with pytest.raises(Stopped) as stop:
            go(tmp_path, cadence(save=0), events=events, skips={4, 5}, patience=3, **asking)
        assert stop.value.number == 15 and [e for e in events if e[0] == "save"] == [("save", 6)]
    events = []
    with pytest.raises(FloatingPointError):
        go(tmp_path, cadence(save=0, log=1), events=events, skips=set(range(4, 11)), patience=3, signals=Asking(4))
    assert not [e for e in events if e[0] == "save"]


def test_what_a_stop_left_undone_is_done_first(tmp_path):
    """The evaluations that were due after the step, of the state as it was; not those that were not."""
    kinds = (("knn", 3, {"knn_top1": 0.5}), ("alarm", 4, {}))
    _, events = go(tmp_path, cadence(), first=3, evaluations=kinds, owed=True)
    assert events[:2] == [("knn", 0), ("step", [4])]
    assert lines(tmp_path)[:2] == [{"step": 3, "knn_top1": 0.5}, {"event": "evaluated", "step": 3}]
    assert ("alarm", 4) in events  # at its own time


def test_a_stop_within_an_evaluation_saves_what_was_not(tmp_path):
    """The state of that step; and once only, where it was saved before the evaluation."""

    def interrupted(state):
        raise Stopped(15)

    for save, expected in ((0, [("save", 5)]), (5, [("save", 5)])):
        events = []
        (tmp_path / "log.jsonl").unlink(missing_ok=True)
        with pytest.raises(Stopped):
            go(tmp_path, cadence(save=save), events=events, evaluations=(("knn", 5, interrupted),))
        assert [e for e in events if e[0] == "save"] == expected
        assert not any("event" in record for record in lines(tmp_path))


@pytest.mark.parametrize("per_call", [1, 4])
@pytest.mark.parametrize("cut", range(1, 10))
def test_the_log_of_a_stopped_run_is_that_of_one_that_was_not(tmp_path, cut, per_call):
    """Lines over ten steps by four, stopped anywhere: what a line had not told yet is in the checkpoint."""
    loss = lambda step: float(np.float32(np.sin(step)))  # noqa: E731
    folders = [tmp_path / name for name in ("whole", "parts")]
    for folder in folders:
        folder.mkdir()
    go(folders[0], cadence(per_call=per_call), loss=loss)
    kept, asking = {}, Asking()
    asking.asked = lambda: 15 if kept_step(events) >= cut else None
    events = []
    with pytest.raises(Stopped):
        go(folders[1], cadence(per_call=per_call), loss=loss, events=events, kept=kept, signals=asking)
    at = max(kept)
    go(folders[1], cadence(per_call=per_call), first=at, loss=loss, unlogged=kept[at])
    whole, parts = ([(r["step"], r["loss"]) for r in lines(folder)] for folder in folders)
    assert parts == whole


def kept_step(events):
    """The last step of a run by its events."""
    return max((count for kind, counts in events if kind == "step" for count in counts), default=0)


def test_skipped_steps_are_counted_said_and_left_out_of_means(tmp_path, capsys):
    """Steps 3 and 4 of the line over 2 to 4; the others go on as if nothing had been."""
    loss = lambda step: float("nan") if step in (3, 4) else float(step)  # noqa: E731
    _, events = go(tmp_path, cadence(), loss=loss, skips={3, 4}, patience=3)
    means = {r["step"]: (r["loss"], r["skipped"]) for r in lines(tmp_path)}
    assert means == {1: (1.0, 0), 4: (2.0, 2), 8: (6.5, 0), 10: (9.5, 0)}
    assert [e for e in events if e[0] == "save"] == [("save", s) for s in (6, 9, 10)]  # not after 3
    assert "warning: 2 of the steps up to 4 were not finite and changed nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("skips", "stops"), [({2, 3, 4}, True), ({2, 3, 5, 6}, False), ({3, 4, 5}, True), ({1, 2}, False)]
)
def test_so_many_in_a_row_stop_the_run(tmp_path, skips, stops):
    """Counted over lines of the log; two in a row, twice, do not add up to three."""
    if not stops:
        go(tmp_path, cadence(log=2), skips=skips, patience=3)
        return
    with pytest.raises(
        FloatingPointError,
        match=r"not finite in 3 steps in a row .*train.max_skipped.*newest checkpoint is from before",
    ):
        go(tmp_path, cadence(log=2), skips=skips, patience=3, loss=lambda s: float("nan") if s in skips else 1.0)


def test_a_run_that_is_stuck_up_to_its_end_does_not_end_well(tmp_path):
    """Fewer steps than patience were left: nothing is saved. A single bad one at the end costs nothing."""
    for first, skips, stuck in ((7, {8, 9, 10}, True), (7, {9, 10}, False), (9, {10}, False)):
        events = []
        with pytest.raises(FloatingPointError, match="all that were left") if stuck else contextlib.nullcontext():
            go(tmp_path, cadence(), first=first, skips=skips, patience=5, events=events)
        assert [e for e in events if e == ("save", 10)] == [("save", 10)] * (not stuck)


def test_what_the_device_waits_for_images_is_in_the_log(tmp_path, monkeypatch):
    """Three of four seconds of every step but the first, which compiles."""
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    take = loop.Feed.take

    def slow(feed, count):
        wait([feed._done])
        feed._batches = late(feed._batches) if not hasattr(feed, "slow") else feed._batches
        feed.slow = True
        return take(feed, count)

    def late(batches):
        for batch in batches:
            clock[0] += 3.0
            yield batch

    monkeypatch.setattr(loop.Feed, "take", slow)

    def loss(step):
        clock[0] += 1.0  # what the step takes
        return 1.0

    go(tmp_path, cadence(save=100, total=13), loss=loss)
    assert [r["waiting"] for r in lines(tmp_path) if "loss" in r][1:-1] == pytest.approx([0.75] * 3)
