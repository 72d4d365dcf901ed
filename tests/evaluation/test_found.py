"""What evaluations left in a run's folder, as a report finds it."""

import json

import numpy as np
import pytest

from moco_jax import protocols
from moco_jax.evaluation import finetune, found, neighbours, probe, transfer
from tests.evaluation import small

FIT = protocols.Fit(batch_size=32, epochs=2)


@pytest.fixture
def bench(monkeypatch):
    return small.Bench(monkeypatch)


def test_every_kind_is_found_by_the_name_of_its_folder(bench, tmp_path):
    """The words of each command, the table of transfer, and what classifiers confuse."""
    linear = protocols.Linear(batch_size=32, epochs=2, schedule="cosine", milestones=())
    probe.run(linear, "run", tmp_path / "linear")
    finetune.run(protocols.Finetune(labels="4", draws=2, fit=FIT), "run", tmp_path / "few")
    neighbours.run(protocols.Knn(k=(5,)), "run", tmp_path / "knn", say=lambda _: None)
    table = protocols.Transfer(labels=("2",), draws=2, k=3, finetune=False)
    transfer.run(table, ["run"], tmp_path / "transfer", say=lambda _: None)
    (few, knn, line, tabled), missing = found.of(tmp_path)
    assert missing == {}
    assert [one.name for one in (few, knn, line, tabled)] == ["few", "knn", "linear", "transfer"]
    assert "fine-tuned on 4 labels per class (12 images)" in few.text and few.confusion.sum() == 2 * 30  # two draws
    assert "kNN top-1" in knn.text and knn.confusion is None
    assert "trained encoder: top-1" in line.text and line.confusion.sum() == 30 and line.classes == ["0", "1", "2"]
    stored = json.loads((tmp_path / "linear" / "result.json").read_text())["rows"]["trained encoder"]["last"]
    assert np.trace(line.confusion) / 30 == pytest.approx(stored["top1"])
    assert tabled.table.columns[0] == "kNN" and next(name for name, _ in tabled.table.rows) == "pixels"


def test_what_cannot_be_shown_says_why(tmp_path):
    """A damaged file and one in another form; folders of something else are nothing."""
    for name, content in (("a", "{"), ("b", '{"about": {"settings": {"protocol": "other"}}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(content)
    (tmp_path / "checkpoints").mkdir()
    made, missing = found.of(tmp_path)
    assert made == [] and list(missing) == ["a", "b"]
    assert "is damaged" in missing["a"] and "evaluate again" in missing["b"]
