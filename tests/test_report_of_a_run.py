"""The whole way for real: two runs of digits, one healthy and one that collapses, with verdict, events and report."""

import dataclasses
import json

import pytest

from benchmarks import verdicts
from moco_jax import cli, pretrain
from moco_jax.reports import runs, verdict
from tests.test_events import values


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{case: its folder}: half of the benchmark's steps, a net of width 8; the second without labels."""
    root, folders = tmp_path_factory.mktemp("runs"), {}
    short = ("model.width=8", "train.epochs=5", "batch_size=64")
    more = {
        "small": ("log.tensorboard=True", "eval.every_epochs=5", "leak.every_epochs=5"),
        "no-momentum": ("eval.every_epochs=0", "leak.every_epochs=0"),
    }
    for name, settings in more.items():
        c = verdicts.settled([], (*verdicts.CASES[name][1], *short, *settings))
        c = dataclasses.replace(c, data=dataclasses.replace(c.data, data_dir=str(root / "tfds")))
        folders[name] = pretrain.train(c, root / name).workdir
    return folders


@pytest.mark.long
@pytest.mark.parametrize("name", ["small", "no-momentum"])
def test_a_run_ends_with_its_verdict(trained, name):
    """In the log as an event, and the same from the folder."""
    last = json.loads((trained[name] / "log.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "verdict" and last["kind"] == verdicts.CASES[name][0], last
    found = verdict.of(runs.read(trained[name]))
    assert (last["kind"], last["cause"], last["advice"]) == found


@pytest.mark.long
def test_its_events_hold_the_log_and_two_pictures(trained):
    """Views at the beginning, neighbours at the end, scalars as logged."""
    found = values(trained["small"] / "tensorboard")
    run = runs.read(trained["small"])
    assert found["views"].keys() == {0} and found["neighbours"].keys() == {run.total}
    for name in ("loss", "knn_top1", "effective_rank", "leak"):
        assert found[name] == pytest.approx(run.series[name], rel=1e-6)


@pytest.mark.long
def test_the_report_shows_both_side_by_side(trained, tmp_path, capsys, monkeypatch):
    """Every picture of both runs, nothing missing but what no log holds, neighbours better than chance by label."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    argv = ["report", *map(str, trained.values()), f"--output={tmp_path}", "--images=120"]
    assert cli.main(argv) == 0
    pictures = {f"{p}-{name}.png" for p in ("views", "neighbours", "map") for name in trained}
    assert pictures <= {p.name for p in tmp_path.iterdir()}
    out = capsys.readouterr().out
    has_consistency = "key_cosine_100" in runs.read(trained["small"]).series
    assert out.count("missing") == (0 if has_consistency else 1)
    assert "no-momentum, step" in out and ": collapsed: " in out and ": learning: " in out
    text = (tmp_path / "report.html").read_text()
    assert "<td>moco.momentum</td><td>0.99</td><td>0.0</td>" in text and "PCA" in text
    assert text.count("<img ") == len(list(tmp_path.glob("*.png")))
