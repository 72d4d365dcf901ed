"""`moco-jax prepare`: what it says, and every slip in one line."""

import pytest

from moco_jax import cli
from moco_jax.data import convert, shards


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
        (["convert"], "FOLDER is missing: usage: moco-jax prepare convert FOLDER --data_dir=DIR"),
        (["convert", "gone", "--workers=0"], "--workers must be a whole number above 0, not '0'"),
        (["convert", "gone", "--workers=two"], "--workers must be a whole number above 0, not 'two'"),
        (["convert", "gone", "--data_dir=new"], "gone is no data set of TFDS: it has no dataset_info.json"),
    ],
)
def test_a_slip_is_one_line(argv, words, capsys, tmp_path):
    """Before anything is written."""
    assert cli.main(["prepare", *argv]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {words}") and err.count("\n") == 1


def test_help(capsys):
    """With an example, before and after the word dataset, and of convert."""
    for argv in (["--help"], ["dataset", "--help"]):
        with pytest.raises(SystemExit) as done:
            cli.main(["prepare", *argv])
        assert done.value.code == 0
        assert "  moco-jax prepare dataset cifar10\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["prepare", "convert", "--help"])
    assert "  moco-jax prepare convert ~/tensorflow_datasets/imagenet2012/" in capsys.readouterr().out


@pytest.mark.parametrize("made", [True, False])
def test_what_was_converted(made, tmp_path, capsys, monkeypatch):
    """How many records, whether now or before, and how to train on them."""
    asked = []
    found = [shards.Shard(tmp_path, tmp_path, 1200), shards.Shard(tmp_path, tmp_path, 34)]

    def converts(*args, **named):
        asked.append((args, named))
        return shards.Plan("small/big", tmp_path, tmp_path, found, ""), made

    monkeypatch.setattr(convert, "convert", converts)
    assert cli.main(["prepare", "convert", "from", f"--data_dir={tmp_path}", "--workers=3"]) == 0
    assert cli.main(["prepare", "convert", "from"]) == 0
    assert asked == [(("from", str(tmp_path)), {"workers": 3}), (("from", None), {"workers": 4})]
    how = "each read back and equal" if made else "there already"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"small/big is in {tmp_path}: 1,234 records in 2 files, {how}"
    assert lines[1] == f"--config.data.dataset=small/big --config.data.data_dir={tmp_path}"
    assert lines[3] == "--config.data.dataset=small/big"
