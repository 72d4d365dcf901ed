"""The table: which row is whose, paired draws, resumed row by row."""

import dataclasses
import json

import pytest

from moco_jax.config import ConfigError
from moco_jax.evaluation import transfer
from moco_jax.protocols import Fit, Transfer
from tests.evaluation import small

SETTINGS = Transfer(labels=("2", "5"), draws=3, k=5, resamples=50, fit=Fit(batch_size=16, epochs=2))


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
    assert len(said) == 4 and run(bench, tmp_path) == (text, [])
    (tmp_path / "rows" / "untrained.json").unlink()
    assert run(bench, tmp_path) == (text, ["row 2 of 4: untrained"])


def test_without_fine_tuning_there_is_no_supervised_row(bench, tmp_path):
    """And other settings are computed anew."""
    _, said = run(bench, tmp_path, dataclasses.replace(SETTINGS, finetune=False, labels=("2",)))
    assert len(said) == 3


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
