"""Where the result of an evaluation may go, for each of the four."""

import functools
import json

import pytest

from moco_jax.checkpoints.store import exclusive
from moco_jax.config import ConfigError
from moco_jax.evaluation import finetune, loading, neighbours, probe, transfer
from moco_jax.protocols import Finetune, Fit, Knn, Linear, Transfer
from tests.evaluation import small

RUNS = {
    "knn": functools.partial(neighbours.run, Knn(k=(5,)), "runs/a"),
    "eval-linear": functools.partial(probe.run, Linear(), "runs/a"),
    "finetune": functools.partial(finetune.run, Finetune(fit=Fit(batch_size=16)), "runs/a"),
    "transfer": functools.partial(transfer.run, Transfer(k=5, finetune=False, labels=()), ["runs/a"]),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("file", ["config.json", "checkpoints/8/state"])
def test_no_result_goes_among_the_files_of_a_run(monkeypatch, tmp_path, name, file):
    """One line, and nothing is encoded or written, whether or not the run has a checkpoint."""
    bench, folder = small.Bench(monkeypatch), tmp_path / "run"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=f"--workdir={folder} is the folder of a run itself: leave") as error:
        RUNS[name](folder)
    assert "\n" not in str(error.value) and not bench.encoded and sorted(tmp_path.rglob("*")) == before


def test_a_folder_in_that_of_a_run_is_no_run(monkeypatch, tmp_path):
    """The probe's checkpoints lie in `trained`, so that its own folder is read back; and the run's stays as it is."""
    small.Bench(monkeypatch)
    (tmp_path / "checkpoints").mkdir()
    settings = Linear(batch_size=32, epochs=1, learning_rates=(1.0,), schedule="cosine", milestones=())
    text = probe.run(settings, "runs/a", tmp_path / "linear")
    assert (tmp_path / "linear/trained/checkpoints").is_dir()
    assert probe.run(settings, "runs/a", tmp_path / "linear") == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "linear"]


@pytest.mark.parametrize("name", RUNS)
def test_a_folder_is_of_one_command_at_a_time(monkeypatch, tmp_path, name):
    """The second one is told before it has done any work; nor is any lost where nothing can be written."""
    bench = small.Bench(monkeypatch)
    with exclusive(tmp_path), pytest.raises(ConfigError, match="another process is at work in"):
        RUNS[name](tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        RUNS[name](tmp_path / "file" / "x")
    assert not bench.encoded


def test_a_table_and_a_result_do_not_share_a_folder(monkeypatch, tmp_path):
    """Either way round."""
    small.Bench(monkeypatch)
    RUNS["transfer"](tmp_path / "table")
    with pytest.raises(ConfigError, match="holds a table of `moco-jax transfer`"):
        RUNS["knn"](tmp_path / "table")
    RUNS["knn"](tmp_path / "result")
    with pytest.raises(ConfigError, match="holds another evaluation, no table"):
        RUNS["transfer"](tmp_path / "result")


def test_a_checkpoint_that_the_run_has_removed_since_loses_nothing(monkeypatch, tmp_path):
    """The encoder is compared in memory alone, and the result says so."""
    small.Bench(monkeypatch)
    monkeypatch.setattr(loading, "stored_digest", lambda *_: None)
    text = RUNS["knn"](tmp_path)
    assert "bit for bit as before, in memory (the run has removed that checkpoint since)" in text
    assert json.loads((tmp_path / "result.json").read_text())["top1"]


def test_what_a_file_says_of_its_images_is_part_of_the_question(monkeypatch, tmp_path):
    """A file's mean may be edited: the old numbers are its no more; a run's own config is settled, and not asked."""
    bench, ask = small.Bench(monkeypatch), RUNS["knn"]
    ask(tmp_path / "run")
    assert "preprocessing" not in json.loads((tmp_path / "run/result.json").read_text())["about"]
    of_run, how = bench.load, {"how": bench.how}

    def load(*_, **__):
        loaded = of_run("a.pth")
        return loaded._replace(trained=loaded.trained._replace(preprocessing=how["how"]), step=None, total_steps=None)

    monkeypatch.setattr(loading, "load", load)
    text = ask(tmp_path / "file")
    assert ask(tmp_path / "file") == text
    how["how"] = bench.how._replace(mean=(0.25,))
    with pytest.raises(ConfigError, match="holds another evaluation: preprocessing.mean"):
        ask(tmp_path / "file")
