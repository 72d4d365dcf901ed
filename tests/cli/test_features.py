"""`moco-jax features`: flags to one call, and one line for every slip."""

import numpy as np
import pytest

from moco_jax import cli
from moco_jax.evaluation import export


def test_flags_reach_the_export(monkeypatch, capsys):
    """Each under its name; what was written is said."""
    calls = []

    def fake(*places, **named):
        calls.append((places, named))
        return {"features": np.zeros((4, 3)), "names": np.zeros(4)}

    monkeypatch.setattr(export, "export", fake)
    flags = ("--images=set", "--split=test", "--data_dir=d", "--feature=head", "--batch_size=7", "--format=parquet")
    assert cli.main(["features", "run", "--output=a.parquet", *flags]) == 0
    assert capsys.readouterr().out == "a.parquet: features (4, 3), names (4,)\n"
    assert cli.main(["features", "run", "--output=a.npz"]) == 0
    given = {"images": "set", "split": "test", "data_dir": "d", "feature": "head", "batch_size": 7, "say": print}
    default = {"images": None, "split": None, "data_dir": None, "feature": "backbone", "batch_size": 256}
    default |= {"say": print}
    assert calls == [(("run", "a.parquet"), given), (("run", "a.npz"), default)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: RUN is missing: usage: moco-jax features RUN --output=FILE"),
        (["run"], "error: --output=FILE is missing: usage: moco-jax features"),
        (["run", "--output=a.npz", "--format=csv"], "error: --format 'csv' is unknown (one of: npz, parquet)"),
        (["run", "--output=a.npz", "--format=parquet"], "error: --format=parquet writes a file that ends in .parquet"),
        (["run", "--output=a.npz", "--batch_size=2.5"], "error: --batch_size must be a whole number, not '2.5'"),
        (["run", "--output=a.npz", "--batch_size=0"], "error: --batch_size must be a whole number from 1 on, not 0"),
        (["run", "--output=a.npz", "--feature=x"], "error: feature 'x' is unknown (one of: backbone, head)"),
        (["run", "--output=a.npz", "--layer=x"], "error: flag 'layer' is unknown"),
        (["run", "--output=a.npz"], "error: there is no run: give a run's folder, a file of weights"),
    ],
)
def test_a_slip_is_one_line(argv, message, capsys, tmp_path, monkeypatch):
    """With status 1, and nothing written."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["features", *argv]) == 1
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example(capsys):
    """And every flag."""
    with pytest.raises(SystemExit) as done:
        cli.main(["features", "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and "moco-jax features runs/digits --split=test --output=digits.npz" in text
    assert all(f"--{name}=" in text for name in ("output", "images", "split", "feature", "format", "batch_size"))
