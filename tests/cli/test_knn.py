"""`moco-jax knn`: flags to one call, and one line for every slip."""

import pytest

from moco_jax import cli, protocols
from moco_jax.evaluation import neighbours


def test_flags_reach_the_evaluation(monkeypatch, capsys):
    """Each under its name; without any, the run of digits by the page as it is; the text is printed."""
    calls = []
    monkeypatch.setattr(neighbours, "run", lambda *given, **_: calls.append(given) or "the table")
    assert cli.main(["knn"]) == 0
    flags = ("--config.k=(3, 7)", "--config.temperature=0.07", "--config.features=('head',)", "--config.bank=9")
    assert cli.main(["knn", "--checkpoint=a", "--workdir=b", "--config.data.dataset=set", *flags]) == 0
    data = protocols.Labelled(dataset="set")
    other = protocols.Knn(k=(3, 7), temperature=0.07, features=("head",), bank=9, data=data)
    assert calls == [(protocols.Knn(), "runs/digits", "runs/digits/knn"), (other, "a", "b")]
    assert capsys.readouterr().out == "the table\n" * 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config.bank=x"], "error: config key 'bank' must be a whole number, not 'x'"),
        (["--config.temprature=1"], "error: config key 'temprature' is unknown"),
        (["--config=linear_digits"], "error: this is the page of an evaluation 'linear'; here one of 'knn' is needed"),
        (["--config=digits"], "error: this is the page of a training run; here one of 'knn' is needed"),
        (["--config.temperature=0"], "error: temperature must be 1e-37 or more, not 0.0"),
        (["--checkpoint=gone"], "error: there is no gone: give a run's folder, a file of weights"),
        (["--k=3"], "error: flag 'k' is unknown"),
    ],
)
def test_a_slip_is_one_line(argv, message, capsys, tmp_path, monkeypatch):
    """With status 1, and nothing written."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["knn", *argv]) == 1
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_pages_of_its_kind_alone(capsys):
    """An example, every key with its value, and no page that would be refused."""
    with pytest.raises(SystemExit) as done:
        cli.main(["knn", "--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0 and "moco-jax knn --checkpoint=runs/digits --config.temperature" in shown
    assert "a shipped page: knn (default knn)" in shown and "k = (10, 20, 100, 200)" in shown
