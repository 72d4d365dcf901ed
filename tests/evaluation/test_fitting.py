"""Training on labels: plans that no number of devices changes, and fits that no stop changes."""

import functools
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import loop, parallel
from moco_jax.checkpoints.store import Store
from moco_jax.config import ConfigError
from moco_jax.evaluation import classifier, fitting
from tests import tiny


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize(("rows", "steps", "epochs"), [(3, 1, 60), (16, 1, 60), (17, 2, 30), (60, 4, 15)])
def test_a_plan_is_the_same_on_any_devices(devices, rows, steps, epochs, monkeypatch):
    """Fewer rows than a batch are filled up; least_steps stretches the epochs."""
    monkeypatch.setattr(parallel, "device_count", lambda: devices)
    made = fitting.plan(np.arange(rows), batch_size=16, epochs=10, least_steps=60, group_size=8)
    assert (made.batch_size, made.steps_per_epoch, made.epochs, made.total) == (16, steps, epochs, steps * epochs)


def test_a_batch_that_breaks_groups_or_devices_is_refused(monkeypatch):
    """The multiple that would do is named."""
    monkeypatch.setattr(parallel, "device_count", lambda: 6)
    with pytest.raises(ConfigError, match="batch_size 16 over 6 devices .* groups of 4 images; use a multiple of 12"):
        fitting.plan(np.arange(9), batch_size=16, epochs=1, group_size=4)
    assert fitting.plan(np.arange(9), batch_size=12, epochs=1, group_size=0).total == 1


PLAN = fitting.Plan(np.arange(12), 8, 2, 6)  # six epochs of two steps


@functools.cache
def task():
    """A linear classifier on stored features, and its mapped step: compiled once."""
    made = classifier.linear(
        lambda batch, data, step: data["features"][batch["ids"][:, 0]],
        seed=0, width=4, classes=3, rates=(1.0,), schedule=lambda step: jnp.ones(()), momentum=0.9, weight_decay=0.0,
    )  # fmt: skip
    return made, parallel.map_step(made.step)


def fit(folder, evaluator, **about):
    """The state and the history of twelve steps, judged after every epoch."""
    made, step = task()
    features = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    data = parallel.put_data({"features": features, "labels": (np.arange(12) % 3).astype(np.int32)})
    return fitting.in_folder(
        made,
        step,
        fitting.batches(None, PLAN, seed=0, workers=1),
        data,
        PLAN,
        folder,
        about={"settings": {"epochs": 6}, **about},
        called="a fit",
        save_every_epochs=2,
        evaluations=[loop.Evaluation(2, evaluator)],
    )


def size(state):
    """A number that every step changes."""
    return {"test_size": float(np.abs(parallel.host(state.online.params["kernel"])).sum())}


def stopping(function, call):
    """The function, which is stopped at one of its calls."""
    calls = []

    def stopped(*given, **named):
        calls.append(0)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*given, **named)

    return stopped


STOPS = [("save", 1), ("save", 2), ("save", 3), *(("evaluate", call) for call in (1, 2, 3, 4, 6))]


@pytest.mark.parametrize(("place", "call"), STOPS)
def test_a_fit_that_was_stopped_anywhere_is_that_of_one_go(place, call, tmp_path, monkeypatch, capsys):
    """In a save or an evaluation, before, between and after checkpoints, and after the last step; with a torn log."""
    whole, history = fit(tmp_path / "whole", size)
    assert sorted(history) == [2, 4, 6, 8, 10, 12] and len({v["test_size"] for v in history.values()}) == 6
    save, evaluate = (
        stopping(f, call if name == place else 0) for name, f in (("save", Store.save), ("evaluate", size))
    )
    monkeypatch.setattr(Store, "save", save)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "stopped", evaluate)
    monkeypatch.undo()
    with (tmp_path / "stopped" / "log.jsonl").open("a") as log:
        log.write('{"step": 12, "test_si')
    capsys.readouterr()
    again, found = fit(tmp_path / "stopped", size)
    assert found == history
    steps = 4 * (call - 1 if place == "save" else call // 2)  # a checkpoint is written before its evaluation
    how = {0: "a fit: 12 steps", 12: ""}.get(steps, f"a fit: continuing at step {steps} of 12 steps")
    said = capsys.readouterr().out
    assert how in said and ("a fit" in said) == (steps < 12)
    assert tiny.distance(again, whole)[0] == 0
    assert fit(tmp_path / "stopped", size)[1] == history  # also once it is done


def test_what_was_logged_before_the_first_checkpoint_is_forgotten(tmp_path):
    """A fit begins at step 0 with a log of its own."""
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stopping(lambda state: {"test_size": -1.0}, 2))  # the first checkpoint is on its way
    shutil.rmtree(tmp_path / "checkpoints")
    fit(tmp_path, size)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(r.get("test_size") != -1.0 for r in records) and records[0]["step"] <= 2


@pytest.mark.parametrize("call", [1, 2])
def test_a_fit_that_was_begun_is_not_gone_on_with_as_another(call, tmp_path):
    """Also before the first checkpoint, of which there is only what was written at the start."""
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stopping(size, call))
    with pytest.raises(ConfigError, match="holds another evaluation: another encoder; use another --workdir"):
        fit(tmp_path, size, encoder="another")
