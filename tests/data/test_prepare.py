"""`prepare`: TFDS is asked in a process of its own, what is there stays, and every failure ends in one line."""

import importlib.util
import os
import pathlib
import textwrap

import pytest
import tensorflow_datasets as tfds

import moco_jax
from moco_jax.config import ConfigError
from moco_jax.data import prepare as ours
from moco_jax.data import tfds as ours_tfds


@pytest.fixture
def other_process(tmp_path, monkeypatch):
    """other_process(file, text): a module that the process which prepares finds before any installed one."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(pathlib.Path(moco_jax.__file__).parents[1])]))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorflow" or found(name))
    return lambda file, text: (folder / file).write_text(textwrap.dedent(text))


def test_tfds_itself_writes_array_record(other_process, tmp_path):
    """Through TFDS's real builder of a data set that needs no TensorFlow: it can be opened; again, it is there."""
    other_process("sitecustomize.py", "import moco_jax.data.digits\n")  # its builder, known there by name
    folder = str(tmp_path / "sets")
    ours.in_a_process_of_its_own("digits", folder)
    assert len(ours_tfds.open_source("digits", "train", data_dir=folder)) == 1500
    there = f"{folder}/digits/1.0.0"
    assert ours.formats("digits", folder) == (there, ["array_record"]) and not ours.dataset("digits", folder)


STUB = """
    import sys
    class Builder:
        def download_and_prepare(self):
            {what}
    def builder(*arguments, **named):
        print("asked for", arguments, named)
        return Builder()
"""


def test_what_the_other_process_is_asked(other_process, tmp_path, capfd):
    """cifar10 into the folder as array_record; its output goes to stderr, the console's stdout stays ours."""
    other_process("tensorflow_datasets.py", STUB.format(what="pass"))
    folder = tmp_path / "new" / "sets"
    assert ours.dataset("cifar10", str(folder))
    out, err = capfd.readouterr()
    assert out == "" and folder.is_dir()
    assert f"asked for ('cifar10',) {{'data_dir': '{folder}', 'file_format': 'array_record'}}" in err


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("raise ConnectionError('no route\\n  to host')", "ConnectionError: no route to host"),
        ("sys.stderr.write('10%\\r20%\\r'); sys.exit(3)", "20%"),
        ("import os; os.abort()", "ended by signal 6"),
        ("raise ValueError('x' * 1000)", "ValueError: x{288}"),
    ],
)
def test_last_words(other_process, monkeypatch, tmp_path, what, words):
    """One line, no longer than can be read, also after a progress bar, and where the process was killed."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what it prints and what it dies of are to stay in order
    other_process("tensorflow_datasets.py", STUB.format(what=what))
    with pytest.raises(ConfigError, match=rf"^TFDS could not prepare 'cifar10' in {tmp_path}: {words}$"):
        ours.dataset("cifar10", str(tmp_path))


def test_without_tensorflow_the_extra_is_named(tmp_path, monkeypatch):
    """One line with what to install, and nothing is written."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"^preparing 'cifar10' needs TensorFlow .*: pip install \"moco_jax\[prepare\]\"$"
    ):
        ours.dataset("cifar10", str(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_prepared(tmp_path, prepare, other_process):
    """An unknown name with the nearest one, a folder that cannot be, another format that is there already."""
    with pytest.raises(ConfigError, match="TFDS has no data set 'cifar-10'; did you mean 'cifar10'"):
        ours.dataset("cifar-10", str(tmp_path))
    with pytest.raises(ConfigError, match="no data set '???'; its catalogue: https".replace("?", r"\?")):
        ours.dataset("???", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="/file/sets' cannot be written .*; name another"):
        ours.dataset("cifar10", str(tmp_path / "file" / "sets"))
    folder = prepare("mnist", {"x": tfds.features.Text()}, [{"x": "a"}], file_format="parquet")
    with pytest.raises(
        ConfigError, match=r"'mnist' is prepared in .* as parquet.*prepare dataset mnist --data_dir=FOL"
    ):
        ours.dataset("mnist", folder)
    info = pathlib.Path(folder, "mnist", "1.0.0", "dataset_info.json")
    info.write_text(info.read_text().replace('"parquet"', '"tfrecord"'))
    with pytest.raises(ConfigError, match=rf"as tfrecord.*: moco-jax prepare convert {info.parent} --data_dir=FOLDER$"):
        ours.dataset("mnist", folder)
