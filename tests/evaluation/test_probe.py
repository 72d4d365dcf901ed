"""The linear probe as a command, on a small encoder: what it reports, resumes, reads back and refuses."""

import dataclasses
import json

import numpy as np
import pytest

from moco_jax import loop
from moco_jax.config import ConfigError
from moco_jax.evaluation import fitting, labelled, neighbours, probe
from moco_jax.protocols import Knn, Linear, Views
from moco_jax.state import Network, State
from tests.evaluation import small

SETTINGS = Linear(
    batch_size=32, epochs=12, learning_rates=(3.0, 0.001), schedule="cosine", milestones=(), save_every_epochs=5
)
AUGMENTED = dataclasses.replace(SETTINGS, views=Views(recipe="supervised_digits", path="resident"))


@pytest.fixture
def bench(monkeypatch):
    """A run with images whose label a linear classifier on its features can tell."""
    return small.Bench(monkeypatch)


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_the_first_rate_after_the_last_epoch_is_the_headline(bench, tmp_path):
    """All rates and the best epoch stand beside it, and how they were chosen."""
    text = probe.run(SETTINGS, "runs/a", tmp_path)
    row = result(tmp_path)["rows"]["trained encoder"]
    assert row["last"]["top1"] > 0.8 and row["learning_rate"] == 3.0 and row["images"] == {"train": 60, "test": 30}
    assert row["rates"]["3"] == pytest.approx(row["last"]["top1"]) and row["rates"]["0.001"] < row["rates"]["3"]
    assert row["best"]["top1"] >= row["last"]["top1"] and 1 <= row["best"]["epoch"] <= 12
    assert "chosen on the test split" in text and "the first of learning_rates" in text and "bit for bit" in text
    assert bench.encoded == 3  # 60 train and 30 test images, once, in batches of 32


def test_the_rate_can_be_chosen_on_held_out_train_labels(bench, tmp_path):
    """A fifth of the train labels: nothing is fitted to them, and no choice sees the test split."""
    settings = dataclasses.replace(SETTINGS, holdout=0.2, learning_rates=(0.001, 3.0))
    text = probe.run(settings, "runs/a", tmp_path)
    row = result(tmp_path)["rows"]["trained encoder"]
    assert row["learning_rate"] == 3.0 and row["images"]["train"] == 48 and "held" in row
    assert "held-out train labels" in text and "48 train labels of 60, 12 held out, 30 test images" in text


KEYS = ("test_top1_lr3", "held_top1_lr3", "test_top1_lr0.1", "held_top1_lr0.1")
SHARES = {2: (0.5, 0.6, 0.2, 0.9), 4: (0.8, 0.1, 0.7, 0.2), 6: (0.6, 0.3, 0.4, 0.5)}  # {step: shares by KEYS}


def test_what_is_chosen_on_held_out_labels_is_reported_on_the_test_split():
    """The rate after the last epoch, and epoch and rate of all; the best on the test split stands apart from both."""
    history = {step: dict(zip(KEYS, shares, strict=True)) for step, shares in SHARES.items()}
    labels = np.arange(10) % 2
    test = probe.Judged(np.eye(2)[labels], labels)
    kernel = np.stack([np.eye(2), 1 - np.eye(2)])  # rate 3 is always right, rate 0.1 never
    state = State(np.array(6), Network({"kernel": kernel, "bias": np.zeros((2, 2))}, {}), None, None, ())
    train = labelled.Split(None, np.arange(20) % 2, None)
    pair = labelled.Pair(train, labelled.Split(None, labels, None), 2, ["a", "b"], "split test")
    planned = fitting.Plan(np.arange(16), 8, 2, 3)
    ask = dataclasses.replace(SETTINGS, learning_rates=(3.0, 0.1), holdout=0.2)
    found = probe._result(ask, state, test, history, planned, pair)
    assert found["learning_rate"] == 0.1 and found["last"]["top1"] == 0.0
    assert found["held"] == {"epoch": 1, "learning_rate": 0.1, "top1": 0.2}
    assert found["best"] == {"epoch": 2, "learning_rate": 3.0, "top1": 0.8}
    assert found["rates"] == {"3": 0.6, "0.1": 0.4} and found["images"] == {"train": 16, "test": 10, "held": 4}
    found = probe._result(dataclasses.replace(ask, holdout=0.0), state, test, history, planned, pair)
    assert found["learning_rate"] == 3.0 and found["last"]["top1"] == 1.0 and "held" not in found


def test_a_rate_that_diverged_has_no_number(bench, tmp_path):
    """It is never chosen, nor the best of all epochs; as the headline it is an error that says what to do."""
    short = dataclasses.replace(SETTINGS, epochs=3, weight_decay=0.01)
    text = probe.run(dataclasses.replace(short, learning_rates=(3.0, 1e30)), "runs/a", tmp_path / "second")
    row = result(tmp_path / "second")["rows"]["trained encoder"]
    assert row["rates"] == {"3": pytest.approx(row["last"]["top1"]), "1e+30": None} and "1e+30: diverged" in text
    assert row["best"]["learning_rate"] == 3.0
    chosen = dataclasses.replace(short, learning_rates=(1e30, 0.001), holdout=0.2)
    assert "learning rate 0.001, held-out train labels" in probe.run(chosen, "runs/a", tmp_path / "chosen")
    first = dataclasses.replace(short, learning_rates=(1e30, 3.0))
    with pytest.raises(ConfigError, match=r"learning rate 1e\+30 diverged, .*: put a lower one first"):
        probe.run(first, "runs/a", tmp_path / "first")
    assert not (tmp_path / "first" / "result.json").exists()


def test_the_rate_falls_by_the_factor_asked_for():
    """At each milestone: main_lincls.py's tenth, or another."""
    for factor in (0.1, 0.5):
        how = dataclasses.replace(SETTINGS, schedule="step", milestones=(2, 4), milestone_factor=factor)
        at = fitting.schedule(how, epochs=6, steps_per_epoch=3, section="")
        assert [float(at(3 * epoch)) for epoch in (1, 2, 4)] == pytest.approx([1.0, factor, factor**2])


def test_the_untrained_encoder_stands_beside_it_if_asked_for(bench, tmp_path):
    """The same protocol, its own weights."""
    probe.run(dataclasses.replace(SETTINGS, untrained=True), "runs/a", tmp_path)
    rows = result(tmp_path)["rows"]
    assert (
        list(rows) == ["untrained encoder", "trained encoder"] and rows["untrained encoder"] != rows["trained encoder"]
    )


def test_augmented_views_are_encoded_anew(bench, tmp_path):
    """On resident images and streamed; features move with the views, the encoder does not."""
    for path in ("resident", "streamed"):
        how = dataclasses.replace(AUGMENTED, views=Views(recipe="supervised_digits", path=path))
        probe.run(how, "runs/a", tmp_path / path)
        assert result(tmp_path / path)["rows"]["trained encoder"]["last"]["top1"] > 0.6
    assert bench.encoded == 2  # the test images alone


def test_a_stopped_probe_goes_on_where_it_was(bench, tmp_path, monkeypatch):
    """Stopped after the checkpoint of epoch 5: the rest alone is trained, also by more threads."""
    probe.run(AUGMENTED, "runs/a", tmp_path / "whole")
    wait, count = loop.parallel.put_batch, [0]

    def stopping(batch):
        count[0] += 1
        if count[0] == 2 * 5 + 3:
            raise KeyboardInterrupt
        return wait(batch)

    more_threads = dataclasses.replace(
        AUGMENTED, data=dataclasses.replace(AUGMENTED.data, workers=3), save_every_epochs=4
    )

    monkeypatch.setattr(loop.parallel, "put_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        probe.run(AUGMENTED, "runs/a", tmp_path / "stopped")
    with pytest.raises(ConfigError, match="holds another evaluation: seed 0 -> 1; use another --workdir"):
        probe.run(dataclasses.replace(AUGMENTED, seed=1), "runs/a", tmp_path / "stopped")
    count[0] = 100
    probe.run(more_threads, "runs/a", tmp_path / "stopped")
    assert count[0] == 100 + 2 * 7  # seven epochs of two steps
    whole, stopped = (result(tmp_path / n)["rows"]["trained encoder"] for n in ("whole", "stopped"))
    assert whole == stopped


@pytest.mark.parametrize("call", [5, 12])
def test_a_probe_that_was_stopped_while_it_was_judged_goes_on(bench, tmp_path, monkeypatch, call):
    """At a checkpoint in the middle and after the last one: the best epoch is still that of all."""
    probe.run(SETTINGS, "runs/a", tmp_path / "whole")
    judge, count = probe._judge, [0]

    def stopping(*given):
        count[0] += 1
        if count[0] == call:
            raise KeyboardInterrupt
        return judge(*given)

    monkeypatch.setattr(probe, "_judge", stopping)
    with pytest.raises(KeyboardInterrupt):
        probe.run(SETTINGS, "runs/a", tmp_path / "stopped")
    probe.run(SETTINGS, "runs/a", tmp_path / "stopped")
    assert result(tmp_path / "whole") == result(tmp_path / "stopped")


def test_an_equal_question_is_read_back(bench, tmp_path):
    """The second call encodes and writes nothing."""
    text = probe.run(SETTINGS, "runs/a", tmp_path)
    bench.encoded, stamp = 0, (tmp_path / "result.json").stat().st_mtime_ns
    assert probe.run(SETTINGS, "runs/a", tmp_path) == text
    assert not bench.encoded and (tmp_path / "result.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="holds another evaluation: epochs 12 -> 13;"):
        probe.run(dataclasses.replace(SETTINGS, epochs=13), "runs/a", tmp_path)
    with pytest.raises(ConfigError, match="holds another evaluation: protocol 'linear' -> 'knn';"):
        neighbours.run(Knn(k=(5,)), "runs/a", tmp_path)


def test_a_result_of_an_encoder_that_changed_is_not_kept(bench, tmp_path):
    """What the checkpoint holds afterwards is not what was evaluated."""
    bench.on_disk = "another digest"
    with pytest.raises(ConfigError, match="the encoder changed while it was evaluated"):
        probe.run(SETTINGS, "runs/a", tmp_path)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": ()}, "learning_rates must be one or more different numbers above 0"),
        ({"learning_rates": (1.0, 1.0)}, "learning_rates must be"),
        ({"learning_rates": (0.0,)}, "learning_rates must be"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"momentum": 1.5}, "momentum must lie in 0..1"),
        ({"weight_decay": -1.0}, "weight_decay must lie"),
        ({"milestone_factor": -0.1}, "milestone_factor must lie"),
        ({"holdout": 1.0}, "holdout must be a share"),
        ({"feature": "neck"}, "feature 'neck' is unknown"),
        ({"schedule": "step"}, "schedule 'step' needs milestones"),
        ({"schedule": "step", "milestones": (0,)}, r"milestones \(0,\) must rise from 1 on and lie below epochs 12$"),
        ({"schedule": "step", "milestones": (1, 2), "epochs": 2}, "lie below epochs 2$"),
        ({"schedule": "step", "milestones": (60, 80)}, r"epochs 12, such as --config.milestones='\(7, 10\)'"),
        ({"views": Views(recipe="absent")}, "views.recipe 'absent' is unknown"),
        ({"views": Views(recipe="supervised", path="both")}, "views.path must be one of resident, streamed"),
        ({"data": dataclasses.replace(SETTINGS.data, train_split="test")}, "30 images are on both sides"),
    ],
)
def test_what_cannot_be_is_refused(bench, tmp_path, changes, message):
    """One line, before anything is compiled or kept."""
    with pytest.raises(ConfigError, match=message):
        probe.run(dataclasses.replace(SETTINGS, **changes), "runs/a", tmp_path)
    assert not (tmp_path / "result.json").exists()
