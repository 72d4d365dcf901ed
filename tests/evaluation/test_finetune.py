"""Fine-tuning as a command, on a small encoder: what moves, what is drawn, what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from moco_jax.config import ConfigError
from moco_jax.evaluation import finetune, metrics
from moco_jax.protocols import Finetune, Fit
from tests.evaluation import small

FIT = Fit(batch_size=16, epochs=6, learning_rate=0.05, head_learning_rate=0.5)
SETTINGS = Finetune(fit=FIT, test_every_epochs=3)


@pytest.fixture
def bench(monkeypatch):
    """A run with images whose labels can be learned."""
    return small.Bench(monkeypatch)


def test_it_learns_from_an_encoder_and_from_scratch(bench, tmp_path):
    """Two draws of ten labels per class; the last epoch is the headline, the best is marked."""
    few = dataclasses.replace(SETTINGS, labels="10", draws=2)
    text = finetune.run(few, "runs/a", tmp_path / "few")
    found = json.loads((tmp_path / "few" / "result.json").read_text())
    assert [d["train"] for d in found["draws"]] == [30, 30] and "30 test images and 2 draws" in text
    assert "chosen on the test split" in text and all(d["last"]["count"] == 30 for d in found["draws"])
    assert finetune.run(few, "runs/a", tmp_path / "few") == text
    scratch = dataclasses.replace(SETTINGS, start="scratch", test_every_epochs=0)
    assert "supervised from scratch on all labels (60 images)" in finetune.run(scratch, "runs/a", tmp_path / "scratch")


SHORT = dataclasses.replace(SETTINGS, fit=dataclasses.replace(FIT, epochs=1), test_every_epochs=0)


def test_a_list_of_other_labels_is_another_evaluation(bench, tmp_path):
    """The file has the same name; what it lists is what counts, and its order is not."""
    listed = tmp_path / "labels.txt"
    settings = dataclasses.replace(SHORT, labels=str(listed))
    listed.write_text("\n".join(f"train/{i}.png" for i in range(20)))
    text = finetune.run(settings, "runs/a", tmp_path / "out")
    listed.write_text("\n".join(f"train/{i}.png" for i in reversed(range(20))))
    assert finetune.run(settings, "runs/a", tmp_path / "out") == text
    assert "bit for bit as the checkpoint holds it" in text
    listed.write_text("\n".join(f"train/{i}.png" for i in range(1, 21)))
    with pytest.raises(ConfigError, match="holds another evaluation: other labels used; use another --workdir"):
        finetune.run(settings, "runs/a", tmp_path / "out")


@pytest.mark.parametrize("start", ["encoder", "scratch"])
def test_a_result_of_an_encoder_that_changed_is_not_kept(bench, tmp_path, monkeypatch, start):
    """Its checkpoint afterwards is of no other than it was; from scratch there is none to compare with."""
    monkeypatch.setattr(finetune, "_drawn", lambda *_: {"last": metrics.of(np.eye(3), np.arange(3), 3), "train": 3})
    bench.on_disk = "another digest"
    settings = dataclasses.replace(SHORT, start=start)
    if start == "scratch":
        assert "as before, in memory" in finetune.run(settings, "runs/a", tmp_path)
    else:
        with pytest.raises(RuntimeError, match="the encoder changed while it was evaluated"):
            finetune.run(settings, "runs/a", tmp_path)
        assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("changes", "fit", "message"),
    [
        ({"start": "nowhere"}, {}, "start 'nowhere' is unknown"),
        ({"draws": 0}, {}, "draws must be 1 or more"),
        ({"draws": 2}, {}, "nothing is drawn there"),
        ({"labels": "21"}, {}, "labels 21: class 0 has 20 train images"),
        ({"start": "scratch"}, {"batch_norm": "frozen"}, "from scratch: running statistics of random weights"),
        ({}, {"batch_norm": "none"}, "fit.batch_norm 'none' is unknown"),
        ({}, {"layer_decay": 0.5}, "needs a backbone with stages"),
        ({}, {"group_size": 8}, "one of your own"),
        ({}, {"epochs": 0}, "fit.epochs must be 1 or more"),
        ({}, {"learning_rate": -1.0}, "fit.learning_rate must be 0 or more"),
        ({}, {"momentum": 2.0}, "fit.momentum must lie in 0..1"),
        ({}, {"least_steps": 5, "schedule": "step", "milestones": (1,)}, "least_steps 5 with fit.schedule='step'"),
        ({}, {"batch_size": 7}, "batch_size 7 over 8 devices does not give them whole groups"),
    ],
)
def test_what_cannot_be_is_refused(bench, tmp_path, changes, fit, message):
    """One line, and nothing is kept."""
    settings = dataclasses.replace(SETTINGS, fit=dataclasses.replace(FIT, **fit), **changes)
    with pytest.raises(ConfigError, match=message):
        finetune.run(settings, "runs/a", tmp_path / "out")
    assert not (tmp_path / "out" / "result.json").exists()
