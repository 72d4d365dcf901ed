"""The table: which row is whose, paired draws, resumed row by row."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from moco_jax.config import ConfigError
from moco_jax.evaluation import few, finetune, labelled, transfer
from moco_jax.evaluation.features import extract
from moco_jax.protocols import Fit, Transfer
from tests.evaluation import small

FIT = Fit(
    batch_size=16, epochs=2, least_steps=30, learning_rate=0.02, head_learning_rate=0.3, scratch_learning_rate=0.1
)
SETTINGS = Transfer(labels=("2", "5"), draws=3, k=5, resamples=50, fit=FIT)


@pytest.fixture
def bench(monkeypatch):
    """A run's encoder and labelled images."""
    return small.Bench(monkeypatch)


def run(bench, folder, settings=SETTINGS, paths=("runs/a",)):
    said = []
    return transfer.run(settings, paths, folder, load=bench.load, say=said.append), said


def test_every_row_and_column_is_there_and_rows_are_read_back(bench, tmp_path):
    """Pixels, untrained, the encoder, supervised; a row that is missing alone is made again."""
    text, said = run(bench, tmp_path)
    content = json.loads((tmp_path / "table.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["pixels", "untrained", "a", "supervised from scratch"]
    assert content["columns"][:3] == ["kNN", "linear", "fine-tune"] and "fine-tune, 5 per class" in content["columns"]
    cells = dict(zip(content["columns"], content["rows"][1]["cells"], strict=True))
    assert cells["fine-tune"]["mean"] is None and cells["linear, 2 per class"]["half_width"] > 0
    assert cells["kNN"]["difference"]["draws"] == 50 and cells["linear, 5 per class"]["difference"]["draws"] == 3
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + 4 + 4 + 7 + 3
    assert [s for s in said if s.startswith("row")][2] == "row 3 of 4: a" and run(bench, tmp_path) == (text, [])
    (tmp_path / "rows" / "untrained.json").unlink()
    again, said = run(bench, tmp_path)
    assert again == text and said[0] == "row 2 of 4: untrained" and all(s.startswith("  ") for s in said[1:])


def test_without_fine_tuning_there_is_no_supervised_row(bench, tmp_path):
    """And other settings are computed anew."""
    _, said = run(bench, tmp_path, dataclasses.replace(SETTINGS, finetune=False, labels=("2",)))
    assert len([s for s in said if s.startswith("row")]) == 3


def test_cells_are_what_their_names_say(bench, tmp_path):
    """Linear ones by hand from each network's features on the same draws; whole networks from their own starts."""
    run(bench, tmp_path)
    found = {p.stem: json.loads(p.read_text())["columns"] for p in (tmp_path / "rows").iterdir()}
    train, test = bench.splits["train"], bench.splits["test"]
    labels = train.labels(), test.labels()
    drawn = [few.rows(labels[0], "2", seed=0, draw=draw) for draw in range(3)]
    loaded = bench.load("a")
    for name, encoder in (("untrained", loaded.untrained), ("a", loaded.trained)):
        features = [extract(encoder, source, batch_size=30, workers=1)["backbone"] for source in (train, test)]
        accuracies = []
        for rows in drawn:
            center, scale = features[0][rows].mean(0), features[0][rows].std(0)
            fitted = LogisticRegression(max_iter=2000).fit((features[0][rows] - center) / scale, labels[0][rows])
            accuracies.append(np.mean(fitted.predict((features[1] - center) / scale) == labels[1]))
        assert found[name]["linear, 2 per class"] == pytest.approx(accuracies)
    pair = labelled.open_pair(SETTINGS.data, bench.config.data, seed=0)
    fitter = finetune.prepare(SETTINGS.fit, SETTINGS.views, loaded, pair, seed=0, workers=2)
    for name, start in (("a", loaded.trained), ("supervised_from_scratch", loaded.untrained)):
        accuracies = []
        for draw, rows in enumerate(drawn):
            scores = finetune.fitted(fitter, start.network, rows, seed=0, draw=draw, scratch=name != "a")
            accuracies.append(np.mean(scores.argmax(1) == labels[1]))
        assert found[name]["fine-tune, 2 per class"] == pytest.approx(accuracies)
        assert len(set(accuracies)) > 1  # each draw is one of its own
    cells = {row["name"]: row["cells"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    column = json.loads((tmp_path / "table.json").read_text())["columns"].index("linear, 2 per class")
    few_means = [np.mean(found[name]["linear, 2 per class"]) for name in ("a", "untrained")]
    assert cells["untrained"][column]["difference"]["mean"] == pytest.approx(few_means[0] - few_means[1])


@pytest.mark.parametrize(
    ("changes", "paths", "message"),
    [
        ({}, (), "name one or more different"),
        ({}, ("a", "a"), "name one or more different"),
        ({"k": 61}, ("a",), "k 61 neighbours, but there are 60 train images"),
        ({"labels": ("5", "all")}, ("a",), "all labels are columns of their own"),
        ({"labels": ("30",)}, ("a",), "labels 30: class 0 has 20"),
        ({"draws": 0}, ("a",), "draws must be 1 or more"),
        ({"temperature": 0.0}, ("a",), "temperature must be above 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_encoded(bench, tmp_path, changes, paths, message):
    """One line."""
    with pytest.raises(ConfigError, match=message):
        run(bench, tmp_path, dataclasses.replace(SETTINGS, **changes), paths)
    assert not bench.encoded and not list(tmp_path.iterdir())
