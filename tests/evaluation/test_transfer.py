"""The table: which row is whose, paired draws, resumed row by row."""

import dataclasses
import json
import re
import time

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from moco_jax.config import ConfigError
from moco_jax.data import opening
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import few, labelled, logistic, networks, transfer
from moco_jax.evaluation.features import extract
from moco_jax.evaluation.rows import seldom
from moco_jax.protocols import Fit, Labelled, Transfer, Views
from tests.evaluation import small

ROWS = ("pixels", "untrained", "a")
FIT = Fit(
    batch_size=16, epochs=2, least_steps=30, learning_rate=0.02, head_learning_rate=0.3, scratch_learning_rate=0.1
)
SETTINGS = Transfer(labels=("2", "5"), draws=3, k=5, fit=FIT)


@pytest.fixture
def bench(monkeypatch):
    """A run's encoder and labelled images."""
    return small.Bench(monkeypatch)


def run(bench, folder, settings=SETTINGS, paths=("runs/a",)):
    said = []
    return transfer.run(settings, paths, folder, load=bench.load, say=said.append), said


def shares(path):
    """{column: [share of the 30 test images that are right, of every draw]} of a row's file."""
    content = json.loads(path.read_text())
    return {n: [int(bits, 16).bit_count() / 30 for bits in c["right"].values()] for n, c in content.items()}


def test_every_row_and_column_is_there_and_rows_are_read_back(bench, tmp_path):
    """Pixels, untrained, the encoder, supervised; a row that is missing alone is made again."""
    text, said = run(bench, tmp_path)
    content = json.loads((tmp_path / "table.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["pixels", "untrained", "a", "supervised from scratch"]
    assert content["columns"][:3] == ["kNN", "linear", "fine-tune"] and "fine-tune, 5 per class" in content["columns"]
    cells = dict(zip(content["columns"], content["rows"][1]["cells"], strict=True))
    assert cells["fine-tune"]["mean"] is None and cells["linear, 2 per class"]["half_width"] > 0
    assert cells["kNN"]["half_width"] > 0 and cells["linear, 5 per class"]["difference"]["half_width"] > 0
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + 4 + 4 + 7 + 3
    # two networks; all 60 labels take 8 epochs of 4 batches for 30 steps, 6 and 15 labels 30 of one
    work = f"whole networks: 2 x 7 fits, {2 * 16 * (8 * 4 + 6 * 30):,} training images in all"
    assert said[0].startswith(work) and said[1] == "row 1 of 4: pixels"
    assert [s for s in said if s.startswith("row")][2] == "row 3 of 4: a"
    assert run(bench, tmp_path) == (text, said[:1])
    (tmp_path / "rows" / "untrained.json").unlink()
    again, said = run(bench, tmp_path)
    assert again == text and said[1] == "row 2 of 4: untrained" and all(s.startswith("  ") for s in said[2:])


FEATURES = dataclasses.replace(SETTINGS, finetune=False, labels=("2",))


def test_a_column_is_made_anew_where_what_it_depends_on_is_another(bench, tmp_path):
    """Other neighbours: kNN alone; more threads: nothing; other images: everything. There is no supervised row."""
    _, said = run(bench, tmp_path, FEATURES)
    assert [s for s in said if s.startswith("row")] == [f"row {i} of 3: {n}" for i, n in enumerate(ROWS, start=1)]
    workers = dataclasses.replace(FEATURES, data=Labelled(workers=1))
    assert run(bench, tmp_path, workers)[1] == []
    _, said = run(bench, tmp_path, dataclasses.replace(FEATURES, k=7))
    assert [s.split(":")[0] for s in said if s.startswith("  ")] == ["  kNN"] * 3
    bench.splits["test"] = small.source(27, 1, "test")
    text, said = run(bench, tmp_path, dataclasses.replace(FEATURES, k=7))
    assert len(said) == 3 * 4 and "27 test images" in text


def test_what_was_made_before_a_stop_is_kept(bench, tmp_path, monkeypatch):
    """Draws, not only columns and rows."""
    whole, _ = run(bench, tmp_path / "whole", FEATURES)
    correct, calls = logistic.correct, []

    def stopped(*given, **named):
        calls.append(given)
        if len(calls) == 7:  # the first of the second row's draws is done
            raise KeyboardInterrupt
        return correct(*given, **named)

    monkeypatch.setattr(logistic, "correct", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(bench, tmp_path / "stopped", FEATURES)
    monkeypatch.setattr(logistic, "correct", lambda *given, **named: calls.append(given) or correct(*given, **named))
    text, said = run(bench, tmp_path / "stopped", FEATURES)
    assert len(calls) == 7 + 2 + 4  # what is left of its three draws, and the third row
    assert text.replace("stopped", "whole") == whole
    assert [s.split(":")[0] for s in said[:2]] == ["row 2 of 3", "  linear, 2 per class"]


def test_a_draw_is_made_once_however_many_are_asked_for(bench, tmp_path, monkeypatch):
    """More draws: those that are missing; fewer: none, and the table is that of as many."""
    correct, calls = logistic.correct, []
    monkeypatch.setattr(logistic, "correct", lambda *given, **named: calls.append(given) or correct(*given, **named))
    made = []
    for draws, fits in ((2, 3 * 3), (3, 3), (2, 0), (3, 0)):
        calls.clear()
        made.append(run(bench, tmp_path, dataclasses.replace(FEATURES, draws=draws))[0])
        assert len(calls) == fits
    assert made[0] == made[2] != made[1] == made[3]


def _without_right(column):
    del column["right"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: row.update(linear="text"),
        lambda row: _without_right(row["linear"]),
        lambda row: row["linear"].update(right=["ff"]),
        lambda row: row["linear"]["right"].update(dict.fromkeys(row["linear"]["right"], "ff")),
        lambda row: row["linear"]["right"].update(dict.fromkeys(row["linear"]["right"], "gg" * 4)),
    ],
    ids=["text", "missing", "of another version", "too short", "no number"],
)
def test_a_damaged_row_is_named(bench, tmp_path, damage):
    """Never read as another's bits."""
    run(bench, tmp_path, FEATURES)
    path = tmp_path / "rows" / "a.json"
    row = json.loads(path.read_text())
    damage(row)
    path.write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=r"rows/a.json is damaged or of another version; delete it"):
        run(bench, tmp_path, FEATURES)


def test_what_takes_long_is_heard_of(bench, tmp_path, monkeypatch):
    """Draws, and steps within one; but not more often than people want to read."""
    monkeypatch.setattr(transfer, "seldom", lambda say: say)
    _, said = run(bench, tmp_path, dataclasses.replace(SETTINGS, labels=("2",)))
    assert any(re.match(r"  linear, 2 per class: draw 2 of 3, \d+\.\d%  0:0\d left of this column", s) for s in said)
    assert any(re.match(r"  fine-tune, 2 per class: draw 3 of 3, step 20/30  loss ", s) for s in said)
    clock, heard = iter([0.0, 19.0, 21.0, 21.0, 30.0]), []
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    hear = seldom(heard.append, 20.0)
    for text in ("too early", "now", "too early again"):
        hear(text)
    assert heard == ["now"]


def test_test_images_of_every_encoder_are_counted(bench, tmp_path, monkeypatch):
    """Also where the first one never saw them."""
    both = {"runs/a": bench.load("a"), "runs/b": bench.load("b")}
    there = dataclasses.replace(both["runs/b"].config, data=dataclasses.replace(bench.config.data, split="test"))
    both["runs/b"] = both["runs/b"]._replace(config=there)
    monkeypatch.setattr(bench, "load", lambda path: both[path])
    text, _ = run(bench, tmp_path, FEATURES, ("runs/a", "runs/b"))
    assert "on 30 test images (split test; 30 by b)" in text
    gone = dataclasses.replace(there, data=dataclasses.replace(there.data, folder=str(tmp_path / "gone"), dataset=None))
    both["runs/b"] = both["runs/b"]._replace(config=gone)
    real = opening.open_split
    monkeypatch.setattr(opening, "open_split", lambda data, *a, **k: (opening._origin(data), real(data, *a, **k))[1])
    text, _ = run(bench, tmp_path, FEATURES, ("runs/a", "runs/b"))
    assert f"whether b was pretrained on it is not known (data.folder='{tmp_path}/gone' is not there" in text


def test_a_changed_encoder_gives_no_column(bench, tmp_path, monkeypatch):
    """Bit for bit, while it is evaluated."""
    real, seen = frozen.digest, []
    trained = real(small.placed(bench.trained))

    def digest(tree):
        found = real(tree)
        seen.extend([found] * (found == trained))
        return found if len(seen) < 3 else "another"  # once for its name, once before its columns

    monkeypatch.setattr(frozen, "digest", digest)
    with pytest.raises(ConfigError, match="the encoder a changed while it was evaluated"):
        run(bench, tmp_path, FEATURES)
    assert not (tmp_path / "rows" / "a.json").exists()


def test_encoders_that_were_trained_otherwise_need_a_word(bench, tmp_path, monkeypatch):
    """Views of two sizes: named, and settled by the settings; other channels: no table."""
    small_views = bench.load("a")
    large = small_views.resized(size=16, resize=16)
    both = {"runs/a": small_views, "runs/b": large}
    monkeypatch.setattr(bench, "load", lambda path: both[path])
    with pytest.raises(ConfigError, match=r"encoders differ in views.size \(8 in runs/a, 16 in runs/b\)"):
        run(bench, tmp_path, FEATURES, ("runs/a", "runs/b"))
    text, _ = run(bench, tmp_path, dataclasses.replace(FEATURES, views=Views(size=8, resize=8)), ("runs/a", "runs/b"))
    rows = [shares(tmp_path / "rows" / f"{name}.json") for name in ("a", "b")]
    assert rows[0] == rows[1] and "b" in text  # one network, now of one size
    both["runs/b"] = large._replace(values=frozen.Values(3, "uint8", 0.0, 255.0))
    with pytest.raises(ConfigError, match="takes uint8 images of 3 channels, and the first one uint8 images of 1"):
        run(bench, tmp_path, dataclasses.replace(FEATURES, views=Views(size=8, resize=8)), ("runs/a", "runs/b"))


def test_encoders_that_resize_otherwise_need_a_word_and_a_row_is_of_its_own_numbers(bench, tmp_path, monkeypatch):
    """Another filter: named, settled by the settings. Another mean of the second encoder: its row is made anew."""
    first, how = bench.load("a"), bench.how._replace(filter="bicubic")
    both = {"runs/a": first, "runs/b": first.resized(size=None, resize=None, filter="bicubic")}
    assert both["runs/b"].trained.preprocessing == how
    monkeypatch.setattr(bench, "load", lambda path: both[path])
    with pytest.raises(ConfigError, match=r"encoders differ in views.filter \(bilinear in runs/a, bicubic in runs/b\)"):
        run(bench, tmp_path, FEATURES, tuple(both))
    with pytest.raises(ConfigError, match=r"views.filter 'box' is unknown \(one of: bicubic, bilinear\)"):
        run(bench, tmp_path, dataclasses.replace(FEATURES, views=Views(filter="box")), tuple(both))
    settings = dataclasses.replace(FEATURES, views=Views(size=6, filter="bicubic"))
    run(bench, tmp_path, settings, tuple(both))
    rows = [shares(tmp_path / "rows" / f"{name}.json") for name in ("a", "b")]
    assert rows[0] == rows[1] and run(bench, tmp_path, settings, tuple(both))[1] == []
    trained = both["runs/b"].trained
    other = trained._replace(preprocessing=trained.preprocessing._replace(mean=(0.1,)))
    both["runs/b"] = both["runs/b"]._replace(trained=other)
    assert [s for s in run(bench, tmp_path, settings, tuple(both))[1] if s.startswith("row")] == ["row 4 of 4: b"]


def test_cells_are_what_their_names_say(bench, tmp_path):
    """Linear ones by hand from each network's features on the same draws; whole networks from their own starts."""
    run(bench, tmp_path)
    found = {path.stem: shares(path) for path in (tmp_path / "rows").iterdir()}
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
    fitter = networks.prepare(SETTINGS.fit, SETTINGS.views, loaded, pair, seed=0, workers=2)
    for name, start in (("a", loaded.trained), ("supervised_from_scratch", loaded.untrained)):
        accuracies = []
        for draw, rows in enumerate(drawn):
            scores = networks.fitted(fitter, start.network, rows, seed=0, draw=draw, scratch=name != "a")
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
        ({}, ("runs/untrained",), "would share its row 'untrained'"),
        ({}, ("a b", "a?b"), "would share its row"),
        ({"k": 61}, ("a",), "k 61 neighbours, but there are 60 train images: .* --config.k=5"),
        ({"labels": ("5", "all")}, ("a",), "all labels are columns of their own"),
        ({"labels": ("30",)}, ("a",), "labels 30: class '0' has 20"),
        ({"labels": ("5", "2%", "30")}, ("a",), r"labels 30: .* such as --config.labels=\"\('5', '2%'\)\""),
        ({}, ("a", "a/"), "name one or more different"),
        ({"labels": ("x/list.txt", "y/list.txt")}, ("a",), "x/list.txt and y/list.txt would share a column's name"),
        ({"draws": 0}, ("a",), "draws must be 1 or more"),
        ({"temperature": 0.0}, ("a",), "temperature must be 1e-37 or more"),
        ({"temperature": 1e-40}, ("a",), "temperature must be 1e-37 or more"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_encoded(bench, tmp_path, monkeypatch, changes, paths, message):
    """One line."""
    monkeypatch.setattr(few, "is_list", lambda spec: spec.endswith(".txt"))
    with pytest.raises(ConfigError, match=message):
        run(bench, tmp_path, dataclasses.replace(SETTINGS, **changes), paths)
    assert not bench.encoded and not list(tmp_path.iterdir())
