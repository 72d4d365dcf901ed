"""`moco-jax inspect`: from a folder to a page, in words and in a file."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_jax import assembly, cli, config, pages, pretrain
from moco_jax.data import files
from moco_jax.evaluation import monitor

RNG = np.random.default_rng(0)


def image(path, channels=3, size=(20, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if channels == 1 else (*size, channels)
    Image.fromarray(RNG.integers(0, 256, shape, np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    """Two classes in train and val, one gray image, one that is cut short, one double."""
    for split, count in (("train", 18), ("val", 3)):
        for name in ("cat", "dog"):
            for i in range(count):
                image(tmp_path / "photos" / split / name / f"{i}.png", size=(20 + i, 24))
    image(tmp_path / "photos/train/cat/gray.png", channels=1)
    whole = (tmp_path / "photos/train/cat/0.png").read_bytes()
    (tmp_path / "photos/train/dog/short.png").write_bytes(whole[:200])
    (tmp_path / "photos/train/dog/again.png").write_bytes(whole)
    return tmp_path / "photos"


def test_it_says_what_is_there_and_what_training_would_do(photos, capsys):
    """Counts, sizes, kinds, values, the unreadable one by name, the double one, and the run."""
    assert cli.main(["inspect", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "45 images" in out
    assert "splits      2: train 39, val 6" in out
    assert "classes     2: 'dog' 23, 'cat' 22" in out
    assert "stored as   2: 3 channels uint8 43, 1 channel uint8 1" in out
    assert "as data.channels=3 converts" in out
    assert (
        "bad files   1 images (2.22%); training stops: more than data.max_bad_fraction 0.01:" in out
        and "train/dog/short.png" in out
    )
    assert "train/cat/0.png = train/dog/again.png" in out
    assert "38 images in batches of 8: 4 steps per epoch (of 32 images" in out


def test_names_that_are_no_text_are_shown_and_not_written(photos, tmp_path):
    """Linux has such names; a manifest is text."""
    os.rename(photos / "train/cat/3.png", os.fsencode(photos / "train/cat") + b"/b\xff.png")
    os.rename(photos / "train/dog/short.png", os.fsencode(photos / "train/dog") + b"/short\xff.png")
    root, page = Path(__file__).parents[2], tmp_path / "mine.py"
    command = [sys.executable, "-m", "moco_jax", "inspect", str(photos), f"--write={page}"]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, cwd=root, env=strict, capture_output=True, text=True)
    assert "train/dog/short\\udcff.png" in done.stdout
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(r"cannot be written: '.*b\\udcff\.png.*' is no text in UTF-8; rename that file", done.stderr)
    assert not page.exists() and not list(tmp_path.glob("*.csv"))


def test_the_page_that_it_writes_leaves_out_what_cannot_be_read(photos, tmp_path):
    """The page loads, names a manifest of the 44 good images with their labels and splits, and nothing else is left."""
    page = tmp_path / "mine.py"
    assert cli.main(["inspect", str(photos), f"--write={page}"]) == 0
    c = config.read(pages.load(str(page)))
    assert c.data.folder is None and c.data.manifest == str(tmp_path / "mine_readable.csv") and c.data.channels == 3
    assert c.eval.split == "val" and c.eval.every_epochs > 0
    with open(tmp_path / "mine_readable.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 44 and not any("short" in row["path"] for row in rows)
    assert {row["path"].split("/")[0] for row in rows} == {"photos"}  # relative, so that both may move together
    assert {(row["split"], row["label"]) for row in rows} == {(s, n) for s in ("train", "val") for n in ("cat", "dog")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.py", "mine_readable.csv", "photos"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{tmp}/nowhere"], "not there"),
        (["{tmp}/empty"], "holds no images"),
        (["{tmp}/photos", "--write={tmp}/mine.txt"], "a config page is a Python file"),
        (["{tmp}/photos", "--write={tmp}/no/mine.py"], "there is no folder"),
        (["{tmp}/photos", "--write={tmp}/there.py"], "there.py is there already"),
        (["{tmp}/photos", "--write={tmp}/own.py"], "own_readable.csv is there already"),
        (["{tmp}/photos", "--workers=0"], "--workers must be 1 or more"),
        (["{tmp}/one"], "1 images are too few"),
    ],
)
def test_bad_input_ends_in_one_line_and_nothing_written(tmp_path, capsys, argv, words):
    """Status 1, one line, no file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.py").write_text("mine")
    (tmp_path / "own_readable.csv").write_text("path,patient")
    image(tmp_path / "one/a.png")
    for i in range(20):
        image(tmp_path / f"photos/{i}.png")
    before = sorted(p for p in tmp_path.rglob("*"))
    assert cli.main(["inspect", *(a.format(tmp=tmp_path) for a in argv)]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and "delete" not in error
    assert sorted(p for p in tmp_path.rglob("*")) == before
    assert (tmp_path / "there.py").read_text() == "mine" and (
        tmp_path / "own_readable.csv"
    ).read_text() == "path,patient"


def evaluators(page):
    """The splits that the kNN of a written page opens, and its evaluators, as a run and a dry run make them."""
    c = config.read(pages.load(str(page)))
    parts = assembly.assemble(c)
    opened = (
        [monitor.open_split(c, split) for split in (c.eval.bank_split, c.eval.split)] if c.eval.every_epochs else []
    )
    return opened, pretrain.default_evaluators(parts)


def test_labels_count_where_every_image_of_a_split_has_one(tmp_path):
    """Classes in train beside a flat valid: the two are splits, and train's own labels are told from one another."""
    for i in range(20):
        image(tmp_path / f"p/train/{'ab'[i % 2]}/{i}.png")
        image(tmp_path / f"p/valid/{i}.png")
    assert cli.main(["inspect", str(tmp_path / "p"), f"--write={tmp_path}/mine.py"]) == 0
    c = config.read(pages.load(str(tmp_path / "mine.py")))
    assert (c.eval.every_epochs > 0, c.eval.bank_split, c.eval.split) == (True, "train[:80%]", "train[80%:]")


@pytest.mark.parametrize("kind", ["classes", "manifest", "unreadable", "flat"])
def test_the_page_that_it_writes_watches_the_labels_there_are(tmp_path, kind):
    """53 images of one split: the run's own evaluators are made of the page, and no image is on both sides."""
    for i in range(53):
        image(tmp_path / "p" / ("" if kind in ("flat", "manifest") else "01"[i % 2]) / f"{i}.png")
    if kind == "unreadable":
        (tmp_path / "p/1/bad.png").write_bytes(b"")
    rows = ["path,label", *(f"p/{i}.png,{i % 2}" for i in range(53))]
    (tmp_path / "own.csv").write_text("\n".join(rows))
    path = tmp_path / ("own.csv" if kind == "manifest" else "p")
    assert cli.main(["inspect", str(path), f"--write={tmp_path}/mine.py"]) == 0
    opened, made = evaluators(tmp_path / "mine.py")
    assert len(made) == (kind != "flat")
    assert [len(source) for source in opened] == ([] if kind == "flat" else [42, 11])
    names = [name for source in opened for name in source.names()]
    assert len(set(names)) == len(names)


def test_what_cannot_be_trained_on_together_is_still_described(tmp_path, capsys):
    """Counts, kinds and what is unreadable come before the error that ends it."""
    for i in range(16):
        image(tmp_path / f"p/{i}.png")
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(tmp_path / "p/deep.png")
    (tmp_path / "p/empty.png").write_bytes(b"")
    assert cli.main(["inspect", str(tmp_path / "p")]) == 1
    said = capsys.readouterr()
    assert "18 images" in said.out and "1 channel uint16 1" in said.out and "empty.png" in said.out
    assert "deep.png is not 8-bit" in said.err


def test_what_training_stops_at_is_told_from_what_it_replaces(tmp_path, capsys):
    """A film of several frames is whole; the page leaves both out."""
    for i in range(16):
        image(tmp_path / f"p/{i}.png")
    frames = [Image.new("RGB", (9, 9), (i * 100, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "p/film.webp", save_all=True, append_images=frames[1:])
    (tmp_path / "p/empty.png").write_bytes(b"")
    assert cli.main(["inspect", str(tmp_path / "p"), f"--write={tmp_path}/mine.py"]) == 0
    out = capsys.readouterr().out
    assert "bad files   1 images (5.56%)" in out and "  empty.png is empty\n" in out
    assert "unfit       1 images, at which training stops:\n  film.webp holds 3 frames" in out
    assert "the 16 images that can be used" in out


def test_a_page_may_have_the_name_of_the_user_s_own_manifest(tmp_path):
    """Nothing is written in its place, whether or not some of its images can be read."""
    for i in range(20):
        image(tmp_path / f"{i}.png")
    own = "path\n" + "".join(f"{i}.png\n" for i in range(20))
    for name, cut in (("whole", ""), ("cut", "20.png\n")):
        (tmp_path / "20.png").write_bytes(b"")
        (tmp_path / f"{name}.csv").write_text(own + cut)
        assert cli.main(["inspect", f"{tmp_path}/{name}.csv", f"--write={tmp_path}/{name}.py"]) == 0
        assert (tmp_path / f"{name}.csv").read_text() == own + cut
        read = config.read(pages.load(f"{tmp_path}/{name}.py")).data.manifest
        assert read == f"{tmp_path}/{name}{'_readable' if cut else ''}.csv"


def test_the_manifest_keeps_links_as_records_of_their_own(tmp_path):
    """A link beside its target, in a folder reached by a link: each by its own path, as often as it is there."""
    for i in range(20):
        image(tmp_path / f"real/{i}.png")
    (tmp_path / "real/again.png").symlink_to("0.png")
    (tmp_path / "real/bad.png").write_bytes(b"")
    (tmp_path / "photos").symlink_to("real")
    assert cli.main(["inspect", f"{tmp_path}/photos", f"--write={tmp_path}/mine.py"]) == 0
    listing = files.list_manifest(tmp_path / "mine_readable.csv")
    assert sorted(listing.paths) == sorted(f"real/{name}.png" for name in ("again", *range(20)))


def test_a_class_that_lost_its_training_images_is_left_out_and_said(tmp_path, capsys):
    """The only training image of c is empty: its two of val go too, else the manifest would be refused."""
    for i in range(20):
        image(tmp_path / f"p/train/{'ab'[i % 2]}/{i}.png")
    for name in "abcc":
        image(tmp_path / f"p/val/{name}/{len(list(tmp_path.rglob('*')))}.png")
    (tmp_path / "p/train/c").mkdir()
    (tmp_path / "p/train/c/0.png").write_bytes(b"")
    assert cli.main(["inspect", f"{tmp_path}/p", f"--write={tmp_path}/mine.py"]) == 0
    out = capsys.readouterr().out
    assert "left out    2 images of classes without a readable training image:\n  'c' 2\n" in out
    listing = files.list_manifest(tmp_path / "mine_readable.csv")
    assert (listing.class_names, len(listing.paths)) == (["a", "b"], 22)
    page = (tmp_path / "mine.py").read_text()
    assert "2 labelled images that training never sees" in page
    assert config.read(pages.load(f"{tmp_path}/mine.py")).eval.k == 10  # 20 images of two classes, not of three


@pytest.mark.parametrize(
    ("here", "path", "workdir"),
    [("p", ".", "../runs/mine"), ("p/a", "..", "../../runs/mine"), (".", "p", "runs/mine"), ("p", "../q", "runs/mine")],
)
def test_the_workdir_that_it_prints_lies_outside_of_the_images(tmp_path, monkeypatch, capsys, here, path, workdir):
    """Inside a folder of images, and below it, the run goes beside that folder; elsewhere where we are."""
    for i in range(20):
        image(tmp_path / f"p/a/{i}.png")
        image(tmp_path / f"q/{i}.png")
    monkeypatch.chdir(tmp_path / here)
    assert cli.main(["inspect", path, "--write=mine.py"]) == 0
    assert f"--config=mine.py --workdir={workdir}\n" in capsys.readouterr().out
    assert f"--workdir={workdir}\n" in (tmp_path / here / "mine.py").read_text()
