"""`moco-jax prepare`: what it says, and every slip in one line."""

import pytest

from moco_jax import cli


def test_it_says_where_it_is_and_how_to_train_on_it(tmp_path, capsys):
    """Made the first time, there already the second."""
    for words in ("digits is in", "digits was there already in"):
        assert cli.main(["prepare", "dataset", "digits", f"--data_dir={tmp_path}"]) == 0
        line = f"{words} {tmp_path}: --config.data.dataset=digits --config.data.data_dir={tmp_path}\n"
        assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "dataset is missing: usage: moco-jax prepare dataset NAME"),
        (["dataset"], "NAME is missing: usage"),
        (["datset", "cifar10"], "what to prepare, 'datset' is unknown; did you mean 'dataset'?"),
        (["dataset", "cifar10", "mnist"], "unexpected argument 'mnist'"),
        (["dataset", "cifar10", "--dir=x"], "flag 'dir' is unknown; did you mean 'data_dir'"),
        (["dataset", "cifar"], "TFDS has no data set 'cifar'; did you mean 'cifar10"),
    ],
)
def test_a_slip_is_one_line(argv, words, capsys, tmp_path):
    """Before anything is written."""
    assert cli.main(["prepare", *argv]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {words}") and err.count("\n") == 1


def test_help(capsys):
    """With an example, before and after the word dataset."""
    for argv in (["--help"], ["dataset", "--help"]):
        with pytest.raises(SystemExit) as done:
            cli.main(["prepare", *argv])
        assert done.value.code == 0
        assert "  moco-jax prepare dataset cifar10\n" in capsys.readouterr().out
