"""`moco-jax report`: curves of a run without a checkpoint, what is missing, and errors in one line."""

import json
from pathlib import Path

import pytest

from moco_jax import cli, config
from moco_jax.cli import report
from moco_jax.reports import table
from tests.reports import written


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """As the command chooses it, without a word."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def run(tmp_path, name, **objects):
    """A run in its second epoch, still writing, its images an object from Python."""
    workdir = written.folder(tmp_path / name, written.of(3))
    about = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(about | {"objects": {"source": "mine"} | objects}))
    written.stretch(workdir, 0, 14, loss=lambda step: 5.0)
    written.cut(workdir, '{"step": 16, "lo')
    return str(workdir)


def test_curves_alone_of_a_run_still_going(tmp_path, capsys):
    """Into RUN/report: pictures, page, verdict; what cannot be shown is named, on the console and in the page."""
    workdir = run(tmp_path, "a")
    assert cli.main(["report", workdir]) == 0
    out = capsys.readouterr().out
    folder = Path(workdir, "report")
    assert {p.name for p in folder.iterdir()} == {"loss.png", "knn.png", "learning_rate.png", "report.html"}
    assert f"report: {folder}/report.html" in out and "a, step 12/30: learning: loss 5.00" in out
    for title in ("View pairs", "Nearest neighbours", "Map of features"):
        assert f"missing: Images: {title}: the images are an object given from Python, 'mine'" in out
    text = (folder / "report.html").read_text()
    assert "Missing: Map of features" in text and "Missing: Key consistency by age" in text


def test_evaluations_stand_in_the_page(tmp_path, capsys):
    """A table that `transfer` left in the run's folder."""
    workdir = run(tmp_path, "a")
    made = table.Table(["kNN"], [("pixels", [table.Cell(0.5, None, None, "")])], "top-1 on 9 images", [])
    Path(workdir, "transfer").mkdir()
    Path(workdir, "transfer", "table.json").write_text(json.dumps(table.to_json(made)))
    assert cli.main(["report", workdir]) == 0
    text = Path(workdir, "report", "report.html").read_text()
    assert "<h2>Evaluations</h2>" in text and "<caption>top-1 on 9 images</caption>" in text


def test_several_runs_side_by_side(tmp_path, capsys, monkeypatch):
    """Into ./report, named by as little of their paths as tells them apart."""
    monkeypatch.chdir(tmp_path)
    first, second = run(tmp_path, "a"), run(tmp_path, "b")
    assert cli.main(["report", first, second]) == 0
    assert "<h1>Report of a, b</h1>" in Path("report/report.html").read_text()
    assert capsys.readouterr().out.count("learning: loss 5.00") == 2


def test_labels_tell_runs_apart():
    """The last part where that does, else more."""
    assert report.labels_of([Path("/x/a"), Path("/y/b")]) == ["a", "b"]
    assert report.labels_of([Path("/x/1/a"), Path("/x/2/a")]) == ["1/a", "2/a"]


def test_data_that_moved_leaves_the_curves(tmp_path, capsys):
    """The images' folder is gone: the reason in the page, and the rest of it."""
    c = config.to_json(written.of(3))
    c["data"] |= {"dataset": "gone", "data_dir": str(tmp_path)}
    workdir = Path(run(tmp_path, "a", source=""))
    about = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(about | {"config": c}))
    assert cli.main(["report", str(workdir)]) == 0
    assert "missing: Images: View pairs: data set 'gone' is unknown" in capsys.readouterr().out
    assert (workdir / "report" / "loss.png").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: RUN is missing: usage: moco-jax report RUN [RUN...]"),
        (["none"], "error: none holds no config.json: give the folder of a run"),
        (["a", "--map=umap"], "error: --map 'umap' is unknown"),
        (["a", "--images=3"], "error: --images must be a whole number, 4 or more, not 3"),
        (["a", "a/../a"], "error: a run is given twice: a a/../a"),
        (["a", "--output=file"], "error: --output=file is a file; give a folder"),
        (["a", "--outptu=x"], "error: flag 'outptu' is unknown; did you mean 'output'"),
    ],
)
def test_an_error_of_the_users_is_one_line_and_nothing_is_written(tmp_path, argv, message, capsys, monkeypatch):
    """Before anything is drawn."""
    monkeypatch.chdir(tmp_path)
    run(tmp_path, "a")
    Path("file").touch()
    assert cli.main(["report", *argv]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(message) and captured.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file"] and not Path("a/report").exists()


def test_help_shows_an_example(capsys):
    """And every flag."""
    with pytest.raises(SystemExit) as done:
        cli.main(["report", "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and "moco-jax report runs/digits" in text and "--bands=" in text and "--map=" in text
