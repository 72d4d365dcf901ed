"""`moco-jax prepare`: what it says, and every slip in one line."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

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
        (["convert"], "FOLDER is missing: usage: moco-jax prepare convert FOLDER [--data_dir=DIR]"),
        (["convert", "gone", "--workers=0"], "--workers must be a whole number above 0, not 0"),
        (["convert", "gone", "--workers=two"], "--workers must be a whole number, not 'two'"),
        (["convert", "gone", "--data_dir=new"], "gone is no data set of TFDS: it has no dataset_info.json"),
        (["shrink", "photos"], "DST is missing: usage: moco-jax prepare shrink SRC DST"),
        (["shrink", "photos", "b", "--short_side=0"], "--short_side must be a whole number from 1 to 100000, not 0"),
        (
            ["shrink", "photos", "b", "--short_side=25.5"],
            "--short_side must be a whole number, not '25.5'",
        ),
        (["shrink", "photos", "b", "--quality=101"], "--quality must be a whole number from 1 to 100, not 101"),
        (["shrink", "photos", "b", "--workers=nan"], "--workers must be a whole number, not 'nan'"),
        (["shrink", "photos", "b", "--size=3"], "flag 'size' is unknown"),
        (["shrink", "no photos", "b"], "no photos is not there"),
    ],
)
def test_a_slip_is_one_line(argv, words, capsys, tmp_path):
    """Before anything is written."""
    assert cli.main(["prepare", *argv]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {words}") and err.count("\n") == 1


def test_help(capsys):
    """With an example, before and after the word dataset, and of each kind."""
    for argv, example in (
        (["--help"], "dataset cifar10"),
        (["dataset", "--help"], "dataset cifar10"),
        (["shrink", "--help"], "shrink photos photos_512"),
        (["convert", "--help"], "convert ~/tensorflow_datasets/imagenet2012/5.1.0 --data_dir=/data/array_record"),
    ):
        with pytest.raises(SystemExit) as done:
            cli.main(["prepare", *argv])
        assert done.value.code == 0
        assert f"  moco-jax prepare {example}\n" in capsys.readouterr().out


@pytest.fixture
def photos(tmp_path):
    """Two large photos and a small one in two classes."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, 90, 60, 3), np.uint8)
    for name, picture in (("a/1.jpg", pictures[0]), ("a/2.png", pictures[1, :20]), ("b/1.jpg", pictures[2])):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_shrink_says_what_it_did_and_what_is_next(photos, tmp_path, capsys):
    """Counts, bytes before and after; the second time all are there already."""
    argv = ["prepare", "shrink", str(photos), str(tmp_path / "copy"), "--short_side=40"]
    sizes = r"[\d.]+ MB before, [\d.]+ MB after\nnext: --config.data.folder=\S+/copy\n"
    for made in ("2 made smaller, 1 copied as they are", "0 made smaller, 0 copied as they are, 3 there already"):
        assert cli.main(argv) == 0
        assert re.fullmatch(rf"\S+/copy: 3 images \({made}\); {sizes}", capsys.readouterr().out)
    with Image.open(tmp_path / "copy" / "b" / "1.jpg") as image:
        assert image.size == (40, 60)


def test_shrink_names_bad_files_and_its_status_says_so(photos, tmp_path, capsys):
    """One does not end the copy of the others; of a manifest its row goes too."""
    (photos / "b" / "1.jpg").write_bytes((photos / "b" / "1.jpg").read_bytes()[:500])
    (tmp_path / "m.csv").write_text("path\nphotos/a/1.jpg\nphotos/b/1.jpg\n")
    for source, name, good, every in ((photos, "b/1.jpg", 2, 3), (tmp_path / "m.csv", "photos/b/1.jpg", 1, 2)):
        target = tmp_path.parent / f"{tmp_path.name}-copy-{every}"
        assert cli.main(["prepare", "shrink", str(source), str(target), "--short_side=40"]) == 1
        out, err = capsys.readouterr()
        assert f"copy-{every}: {good} images (" in out
        assert re.fullmatch(rf"bad: {name} .+\nerror: 1 of {every} images are not in \S+; they are named above\n", err)
    assert (target / "m.csv").read_text() == "path\nphotos/a/1.jpg\n"


def test_shrink_names_what_the_source_has_no_more(photos, tmp_path, capsys):
    """In one line with bad ones, three by name; our own files and a manifest are none of them."""
    (tmp_path / "photos" / "m.csv").write_text("path\na/1.jpg\nb/1.jpg\n")
    for name in ("m.csv", ""):
        target = tmp_path / f"copy{name}"
        argv = ["prepare", "shrink", str(photos / name), str(target), "--short_side=40"]
        assert cli.main(argv) == 0
        for i in range(4):
            (target / "a" / f"old{i}.jpg").touch()
        capsys.readouterr()
        assert cli.main(argv) == 1
        last = f"{target} holds 4 images that {photos / name} does not list: "
        last += "a/old0.jpg, a/old1.jpg, a/old2.jpg, ...; remove them\n"
        assert capsys.readouterr().err == f"error: {last}"
    (photos / "b" / "1.jpg").write_bytes(b"")
    os.utime(photos / "b" / "1.jpg", (0, 0))
    assert cli.main(argv) == 1
    assert capsys.readouterr().err.endswith(f"1 of 3 images are not in {target}; they are named above; {last}")


@pytest.mark.slow
def test_a_killed_shrink_goes_on(photos, tmp_path):
    """SIGKILL in the middle: only whole files are there, and the same command ends with those of a copy undisturbed."""
    for i in range(40):
        (photos / "b" / f"{i + 2}.jpg").write_bytes((photos / "b" / "1.jpg").read_bytes())
    words = [sys.executable, "-m", "moco_jax", "prepare", "shrink", str(photos), "--short_side=40", "--workers=2"]
    assert subprocess.run([*words, str(tmp_path / "whole")], check=False).returncode == 0
    slow = "import sys, time; from moco_jax.data import tree; w = tree.write\n"
    slow += "def late(*a, **k): time.sleep(0.1); w(*a, **k); print(flush=True)\n"
    slow += "tree.write = late; from moco_jax import cli; cli.main(sys.argv[3:])"
    killed = [sys.executable, "-c", slow, *words[1:], str(tmp_path / "copy")]
    with subprocess.Popen(killed, stdout=subprocess.PIPE) as process:
        for _ in range(10):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)

    def content(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.glob("*/*.*g")}

    whole, there = content(tmp_path / "whole"), content(tmp_path / "copy")
    assert 0 < len(there) < len(whole) == 43 and there.items() <= whole.items()
    assert subprocess.run([*words, str(tmp_path / "copy")], check=False).returncode == 0
    assert content(tmp_path / "copy") == whole and sorted(os.listdir(tmp_path / "copy")) == sorted(
        os.listdir(tmp_path / "whole")
    )


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
