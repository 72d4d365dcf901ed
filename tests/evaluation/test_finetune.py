"""Fine-tuning as a command, on a small encoder: what moves, what is drawn, what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from moco_jax import parallel
from moco_jax.config import ConfigError
from moco_jax.evaluation import classifier, few, finetune, fitting, metrics, networks
from moco_jax.protocols import Finetune, Fit, Labelled, Views
from moco_jax.state import State
from tests.evaluation import small

FIT = Fit(batch_size=16, epochs=20, learning_rate=0.2, head_learning_rate=0.5, scratch_learning_rate=0.2)
SETTINGS = Finetune(fit=FIT, test_every_epochs=10)


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
    assert [d["last"]["top1"] > 0.8 for d in found["draws"]] == [True, True]  # chance: a third
    scratch = dataclasses.replace(SETTINGS, start="scratch", test_every_epochs=0)
    assert "supervised from scratch on all labels (60 images)" in finetune.run(scratch, "runs/a", tmp_path / "scratch")
    (found,) = json.loads((tmp_path / "scratch" / "result.json").read_text())["draws"]
    assert found["last"]["top1"] > 0.8


def test_groups_of_test_images_are_what_an_interval_counts():
    """Thirty images of six patients tell as much as six: the binomial of six, and the words say so."""
    about = {"settings": fitting.plain(dataclasses.replace(SETTINGS, labels="all", draws=1))}
    draw = {"train": 60, "last": metrics.of(np.eye(3)[np.arange(30) % 3], np.arange(30) % 3, 3)}
    stored = {"about": about, "classes": ["a", "b", "c"], "test": "split test", "draws": [draw]}
    images = finetune.text(stored | {"units": 30, "over": "30 test images"})
    groups = finetune.text(stored | {"units": 6, "over": "6 groups of test images"})
    assert "± 6.50 (95 % interval over 30 test images)" in images
    assert "(95 % interval over 6 groups of test images)" in groups
    assert float(groups.split("± ")[1].split()[0]) > 3 * 6.50


def test_the_groups_of_a_split_are_counted(bench, tmp_path):
    """Whole groups set apart: their number stands in the words."""
    bench.splits["train"] = small.source(60, 0, "train", groups=np.arange(60) // 4)
    apart = dataclasses.replace(SETTINGS, test_every_epochs=0, data=Labelled(test_split=None))
    text = finetune.run(apart, "runs/a", tmp_path / "apart")
    assert "(95 % interval over 3 groups of test images)" in text


@pytest.mark.parametrize("path", ["resident", "streamed"])
def test_from_scratch_sees_what_fine_tuning_sees(bench, tmp_path, monkeypatch, path):
    """The same batches and the same views of them, in every draw."""
    views_of, put_batch, seen = classifier.views_of, parallel.put_batch, {}

    def watched(*given):
        of = views_of(*given)

        def images(batch, data, step):
            x = of(batch, data, step)
            jax.debug.callback(lambda step, x: seen[start][1].append((int(step), x.tobytes())), step, x)
            return x

        return images

    def noted(batch):
        seen[start][0].append(jax.tree.map(np.copy, batch))
        return put_batch(batch)

    monkeypatch.setattr(classifier, "views_of", watched)
    monkeypatch.setattr(parallel, "put_batch", noted)
    how = dataclasses.replace(SHORT, labels="8", draws=2, views=Views(recipe="supervised_digits", path=path))
    for start in finetune.STARTS:
        seen[start] = [], []
        finetune.run(dataclasses.replace(how, start=start), "runs/a", tmp_path / start)
        jax.effects_barrier()
    ours, theirs = (seen[start] for start in finetune.STARTS)
    assert len(ours[0]) == 2 * 2 and ("raw" in ours[0][0]) == (path == "streamed")
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
    assert sorted(ours[1]) == sorted(theirs[1]) and len(set(ours[1])) == 2 * 2 * 8  # draws, steps, devices: all differ


SHORT = dataclasses.replace(SETTINGS, fit=dataclasses.replace(FIT, epochs=1), test_every_epochs=0)


def test_a_number_of_labels_is_drawn_whatever_files_there_are(tmp_path, monkeypatch):
    """As `few.is_list` has it; a list is not drawn from."""
    monkeypatch.chdir(tmp_path)
    for name in ("10", "labels.txt"):
        (tmp_path / name).write_text("train/0.png")
    finetune.check(dataclasses.replace(SHORT, labels="10", draws=2))
    with pytest.raises(ConfigError, match="nothing is drawn there"):
        finetune.check(dataclasses.replace(SHORT, labels="labels.txt", draws=2))


def test_each_draw_has_labels_of_its_own(bench, tmp_path, monkeypatch):
    """Those of `few.rows` for its number and the seed."""
    drawn = []

    def trained(settings, fitter, network, rows, *_):
        drawn.append(rows.tolist())
        return {"last": metrics.of(np.eye(3), np.arange(3), 3), "train": len(rows)}

    monkeypatch.setattr(finetune, "_drawn", trained)
    finetune.run(dataclasses.replace(SHORT, labels="5", draws=3, seed=4), "runs/a", tmp_path)
    labels = bench.splits["train"].labels()
    assert drawn == [few.rows(labels, "5", seed=4, draw=draw).tolist() for draw in range(3)]
    assert len({tuple(rows) for rows in drawn}) == 3


def test_the_best_epoch_is_the_one_that_is_most_often_right(bench, tmp_path, monkeypatch):
    """Neither the first, the last nor the worst; a draw of 60 images has four steps per epoch."""
    history = {step: {"test_top1": share} for step, share in ((4, 0.5), (8, 0.9), (12, 0.4), (16, 0.7))}
    monkeypatch.setattr(fitting, "in_folder", lambda *_, **__: (State(0, None, None, None, ()), history))
    monkeypatch.setattr(networks, "judged", lambda fitter, _: np.eye(3)[fitter.pair.test.labels])
    assert "best epoch, chosen on the test split: 90.00%" in finetune.run(SHORT, "runs/a", tmp_path)
    (found,) = json.loads((tmp_path / "result.json").read_text())["draws"]
    assert found["best"] == {"epoch": 2, "top1": 0.9} and found["last"]["top1"] == 1.0


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
        with pytest.raises(ConfigError, match="the encoder changed while it was evaluated"):
            finetune.run(settings, "runs/a", tmp_path)
        assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("changes", "fit", "message"),
    [
        ({"start": "nowhere"}, {}, "start 'nowhere' is unknown"),
        ({"draws": 0}, {}, "draws must be 1 or more"),
        ({"draws": 2}, {}, "nothing is drawn there"),
        ({"labels": "21"}, {}, "labels 21: class '0' has 20 train images"),
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
