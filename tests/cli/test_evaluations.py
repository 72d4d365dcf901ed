"""`eval-linear`, `finetune` and `transfer` as commands: flags become one call, and errors one line."""

import pytest

from moco_jax import cli, pages, protocols
from moco_jax.evaluation import finetune, probe, transfer


@pytest.fixture
def asked(monkeypatch):
    """[(settings, what is evaluated, workdir)] of calls that find nothing."""
    calls = []

    def run(settings, paths, workdir, **_):
        calls.append((settings, paths, workdir))
        return "found"

    for module in (finetune, probe, transfer):
        monkeypatch.setattr(module, "run", run)
    return calls


def read(name, kind, **changes):
    page = pages.load(name)
    page.update_from_flattened_dict(changes)
    return protocols.read(page, kind)


def test_a_table_of_several_encoders(asked, capsys):
    """Separated by commas, into the first one's folder, by the page that fits any images."""
    assert cli.main(["transfer", "--encoders=a,b", "--config.draws=3", "--config.labels=('5','1%')"]) == 0
    assert asked == [(read("transfer", protocols.Transfer, draws=3, labels=("5", "1%")), ["a", "b"], "a/transfer")]
    assert capsys.readouterr().out == "found\n"


def test_one_encoder_by_one_protocol(asked):
    """A run, its folder for the result, and the page that is named."""
    assert cli.main(["eval-linear", "--config=linear_cifar10", "--checkpoint=r"]) == 0
    assert cli.main(["finetune", "--checkpoint=r", "--workdir=w", "--config.start=scratch"]) == 0
    assert asked == [
        (read("linear_cifar10", protocols.Linear), "r", "r/linear"),
        (read("finetune", protocols.Finetune, start="scratch"), "r", "w"),
    ]


def test_a_stop_says_what_the_same_command_does(monkeypatch, capsys):
    """It goes on."""

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "run", stopped)
    assert cli.main(["eval-linear"]) == 130
    assert capsys.readouterr().err == "stopped: the same command goes on from what was kept\n"


def test_texts_are_written_as_texts(capsys):
    """A number where a text belongs is shown as it has to be written."""
    assert cli.main(["transfer", "--encoders=a", "--config.labels=(5,10)"]) == 1
    assert "'labels' must hold texts, such as --config.labels=\"('5', '10')\", not 5" in capsys.readouterr().err


def test_without_arguments_the_default_run_is_evaluated(asked):
    """`python eval_linear.py`, after `python train.py --workdir=runs/digits`."""
    assert cli.main(["eval-linear"]) == 0
    assert asked == [(read("linear_digits", protocols.Linear), "runs/digits", "runs/digits/linear")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transfer"], "--encoders=: name one or more different ones, such as --encoders=runs/mine,runs/other"),
        (["transfer", "--encoders=a,a"], "--encoders=a,a: name one or more different ones"),
        (
            ["transfer", "--encoders=a", "--config=knn"],
            "this is the page of an evaluation 'knn'; here one of 'transfer'",
        ),
        (["finetune", "--config=digits"], "this is the page of a training run; here one of 'finetune' is needed"),
        (["finetune", "--checkpoint=nowhere"], "there is no nowhere: give a run's folder"),
        (["eval-linear", "--config.epochs=50"], "milestones (60, 80) must rise from 1 on and lie below epochs 50"),
        (
            ["finetune", "--checkpoint=r", "--config=finetune_imagenet", "--config.fit.milestones=(60, 30)"],
            "fit.milestones (60, 30) must rise from 1 on and lie below fit.epochs 100",
        ),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, capsys):
    """Before anything is compiled."""
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
