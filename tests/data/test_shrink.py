"""A copy at training size: the same tree, taken up where it stopped, and refused where it would spoil something."""

import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_jax.config import ConfigError
from moco_jax.data import files, opening, pixels, shrink, smaller, tree

HOW = {"short_side": 20, "quality": 95}


@pytest.fixture
def source(tmp_path):
    """Ten classes with a large and a small image each, in two splits."""
    folder = tmp_path / "source"
    pictures = np.random.default_rng(0).integers(0, 256, (20, 40, 30, 3), np.uint8)
    for i in range(10):
        for split in ("train", "val"):
            (folder / split / f"c{i}").mkdir(parents=True)
        Image.fromarray(pictures[2 * i]).save(folder / "train" / f"c{i}" / "large.JPG", "jpeg")
        Image.fromarray(pictures[2 * i + 1, :15]).save(folder / "val" / f"c{i}" / "small.png")
    return folder


def copied(source, target, **how):
    """What became of every image: a list of Done."""
    with shrink.begun(str(source), str(target), **{**HOW, **how}) as (listing, folder):
        return list(shrink.copy(listing, folder, workers=3, **{**HOW, **how}))


def content(folder):
    """{path: bytes} of all files, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_tree_stays_and_large_images_are_made_smaller(source, tmp_path):
    """Same listing, so same labels and same slices; small images byte for byte; large ones 20 pixels; bytes counted."""
    done = copied(source, tmp_path / "copy")
    ours, theirs = (files.list_folder(folder) for folder in (tmp_path / "copy", source))
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    cuts = [opening.of_listing(listing, "train[:50%]", name="x").paths for listing in (ours, theirs)]
    assert cuts[0] == cuts[1] and len(cuts[0]) == 5
    assert [one.what for one in done] == ["smaller"] * 10 + ["copied"] * 10
    for one in done:
        now, before = tmp_path / "copy" / one.name, source / one.name
        assert (one.after, one.before) == (now.stat().st_size, before.stat().st_size)
        if one.what == "copied":
            assert now.read_bytes() == before.read_bytes() and now.stat().st_ino != before.stat().st_ino
        else:
            assert pixels.read_file(now).shape == (26, 20, 3)
    assert [name for name in content(tmp_path / "copy") if tree.OWN in name] == [shrink.RECORD]


def test_a_stopped_copy_goes_on(source, tmp_path, monkeypatch):
    """What is there is kept; the rest, an empty file and one older than its source are made; the end is the same."""
    copy, whole = tmp_path / "copy", tmp_path / "whole"
    copied(source, whole)
    with shrink.begun(str(source), str(copy), **HOW) as (listing, folder), monkeypatch.context() as slow:
        write = shrink.tree.write
        slow.setattr(shrink.tree, "write", lambda *args, **named: (time.sleep(0.05), write(*args, **named)))
        started = shrink.copy(listing, folder, workers=1, **HOW)
        for _ in range(4):
            next(started)
        started.close()
    (folder / shrink.PARTS / f"{tree.OWN}-left.part").write_bytes(b"x")
    (folder / "train/c0/large.JPG").write_bytes(b"")
    os.utime(folder / "train/c1/large.JPG", (0, 0))
    there = len([name for name in content(folder) if tree.OWN not in name])
    again = [one.what for one in copied(source, copy)]
    assert 4 <= there < 20 and again.count("kept") == there - 2 and again[2:4] == ["kept", "kept"]
    assert content(copy) == content(whole)


@pytest.mark.parametrize(
    ("how", "words"), [({"short_side": 30}, "short_side=20 and not 30"), ({"quality": 80}, "quality=95 and not 80")]
)
def test_another_size_or_quality_is_an_error(source, tmp_path, how, words):
    """Images of two kinds in one folder are nobody's wish; nor those of two sources."""
    copied(source, tmp_path / "copy")
    before = content(tmp_path / "copy")
    with pytest.raises(ConfigError, match=f"copy was begun with {words}: use the same, or another folder"):
        copied(source, tmp_path / "copy", **how)
    with pytest.raises(ConfigError, match="begun with source='.*/source' and not '.*/source/train'"):
        copied(source / "train", tmp_path / "copy")
    assert content(tmp_path / "copy") == before


def test_a_target_that_would_spoil_something(source, tmp_path):
    """The source, inside it (through a link too), above it, another folder of files, a damaged record: refused."""
    (tmp_path / "link").symlink_to(source / "train")
    before = content(tmp_path)
    for target, words in (
        (source, "source is /"),
        (source / "copy", "copy is in /"),
        (tmp_path / "link" / "x", "x is in /"),
        (tmp_path, "holds files that are no copy of ours"),
    ):
        with pytest.raises(ConfigError, match=words):
            copied(source, target)
    assert content(tmp_path) == before
    copied(source, tmp_path / "copy")
    whole = (tmp_path / "copy" / shrink.RECORD).read_bytes()
    for damaged in (b"\xff{", b"{x"):
        (tmp_path / "copy" / shrink.RECORD).write_bytes(damaged)
        with pytest.raises(ConfigError, match="is damaged; remove"):
            copied(source, tmp_path / "copy")
    (tmp_path / "copy" / shrink.RECORD).write_bytes(whole[:9])  # by a kill in the middle of it
    assert {one.what for one in copied(source, tmp_path / "copy")} == {"kept"}
    assert (tmp_path / "copy" / shrink.RECORD).read_bytes() == whole


def test_bad_files_are_left_out(source, tmp_path):
    """Named, large or small, and all others are copied."""
    (source / "train/c3/large.JPG").write_bytes(b"no image")
    (source / "val/c4/small.png").write_bytes((source / "val/c4/small.png").read_bytes()[:200])
    (source / "val/c5/gone.png").symlink_to(tmp_path / "nowhere")
    done = {one.name: one for one in copied(source, tmp_path / "copy")}
    bad = {name: one.problem for name, one in done.items() if one.what == "bad"}
    assert sorted(bad) == ["train/c3/large.JPG", "val/c4/small.png", "val/c5/gone.png"]
    assert all(problem.startswith(name) for name, problem in bad.items())
    assert sorted(p for p in content(tmp_path / "copy") if tree.OWN not in p) == sorted(set(done) - set(bad))


def test_a_full_disk_is_one_line(source, tmp_path, monkeypatch):
    """It ends the copy at once, leaves no part of a file, and the same command goes on."""
    write, calls = tree.write, []

    def full(file, content, **how):
        calls.append(file)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        write(file, content, **how)

    monkeypatch.setattr(tree, "write", full)
    with pytest.raises(
        ConfigError, match=r"copy cannot be written: No space left on device; what is done is kept"
    ) as e:
        copied(source, tmp_path / "copy")
    assert "\n" not in str(e.value)
    monkeypatch.undo()
    assert {one.what for one in copied(source, tmp_path / "copy")} == {"kept", "smaller", "copied"}


def test_a_manifest_goes_along(source, tmp_path):
    """With all its columns, without rows of bad files; one that names images elsewhere is refused."""
    (source / "val/c9/small.png").write_bytes(b"")
    paths = ["./train/c0/large.JPG", " val/c1/small.png", "val/c9/small.png"]
    (source / "m.csv").write_text("note,path,label\n" + "".join(f'"a, b",{path},k\n' for path in paths))
    with shrink.begun(str(source / "m.csv"), str(tmp_path / "copy"), **HOW) as (listing, folder):
        bad = {one.name for one in shrink.copy(listing, folder, workers=2, **HOW) if one.what == "bad"}
    written = shrink.write_manifest(str(source / "m.csv"), folder, bad)
    assert written.read_text() == "note,path,label\n" + "".join(f'"a, b",{path},k\n' for path in paths[:2])
    assert files.list_manifest(written).paths == ["train/c0/large.JPG", "val/c1/small.png"]
    assert shrink.write_manifest(str(source), folder, bad) is None
    (source / "train" / "m.csv").write_text("path\n../val/c1/small.png\n")
    with pytest.raises(ConfigError, match="names 1 images that are not below its folder, such as ../val/c1/small.png"):
        copied(source / "train" / "m.csv", tmp_path / "other")


def test_tiffs_without_their_reader_are_refused_at_once(source, tmp_path, monkeypatch):
    """Not one by one as a million bad files."""
    (source / "train/c0/a.TIF").touch()
    monkeypatch.setattr(shrink.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="1 images are TIFFs, such as train/c0/a.TIF: pip install"):
        copied(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_record_says_how(source, tmp_path):
    """Source, size and quality."""
    copied(source, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / shrink.RECORD).read_text()) == {"source": str(source), **HOW}


def test_a_changed_source(source, tmp_path):
    """A newer and an older file in place of one are copied again; a bad one loses its copy; one that left is named."""
    copy = tmp_path / "copy"
    copied(source, copy)
    stamp = (source / "train/c0/large.JPG").stat().st_mtime_ns
    assert (copy / "train/c0/large.JPG").stat().st_mtime_ns == stamp
    names = [*(f"train/c{i}/large.JPG" for i in range(4)), "val/c9/small.png"]
    steps = (2 * 10**9, -(10**12), 10**12, 10**12)
    good = (source / "train/c9/large.JPG").read_bytes()
    for name, step, new in zip(names, steps, (good, good, good, b"no image"), strict=False):
        (source / name).write_bytes(new)
        os.utime(source / name, ns=(stamp, (copy / name).stat().st_mtime_ns + step))
    (source / names[4]).unlink()
    with shrink.begun(str(source), str(copy), **HOW) as found:
        assert shrink.left_over(*found) == [names[4]]
    done = {one.name: one.what for one in copied(source, copy)}
    assert [done.get(name) for name in names] == ["smaller"] * 3 + ["bad", None]
    assert [what for name, what in done.items() if name not in names] == ["kept"] * 15
    assert {(copy / name).read_bytes() for name in names[:3]} == {(copy / "train/c9/large.JPG").read_bytes()}
    assert not (copy / names[3]).exists() and (copy / names[4]).exists()


def test_an_image_that_cannot_be_read_any_more_loses_its_copy(source, tmp_path):
    """A link to nothing is listed, and is bad."""
    copied(source, tmp_path / "copy")
    (source / "val/c5/small.png").unlink()
    (source / "val/c5/small.png").symlink_to(tmp_path / "nowhere")
    assert [one.name for one in copied(source, tmp_path / "copy") if one.what == "bad"] == ["val/c5/small.png"]
    assert not (tmp_path / "copy" / "val/c5/small.png").exists()


@pytest.mark.parametrize("call", ["stat", "read"])
@pytest.mark.parametrize("failures", [2, 3])
def test_a_disk_that_does_not_answer_costs_no_copy(source, tmp_path, monkeypatch, call, failures):
    """Three tries, as in training; then the copy stops in a line, what is there stays, and the same command goes on."""
    name, tries, waits = source / "train/c3/large.JPG", [], []
    copied(source, tmp_path / "copy")
    before = content(tmp_path / "copy")
    if call == "read":
        os.utime(name, (0, 0))
    where, attribute = (os, "stat") if call == "stat" else (Path, "read_bytes")
    real = getattr(where, attribute)

    def stale(path, *how, **more):
        if str(path) == str(name):
            tries.append(path)
            if len(tries) <= failures:
                raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, *how, **more)

    monkeypatch.setattr(pixels.time, "sleep", waits.append)
    with monkeypatch.context() as disk:
        disk.setattr(where, attribute, stale)
        if failures == 2:
            done = {one.name: one.what for one in copied(source, tmp_path / "copy")}
            assert done["train/c3/large.JPG"] == {"stat": "kept", "read": "smaller"}[call]
        else:
            with pytest.raises(ConfigError, match=r"large\.JPG cannot be read \(Stale file handle\); what is done is"):
                copied(source, tmp_path / "copy")
    assert content(tmp_path / "copy") == before
    assert len(tries) == 3 and waits == list(pixels.WAITS)


def test_too_little_memory_costs_no_copy(source, tmp_path, monkeypatch):
    """It says nothing of the image."""
    copied(source, tmp_path / "copy")
    before = content(tmp_path / "copy")
    os.utime(source / "train/c3/large.JPG", (0, 0))

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(smaller.crops, "shorter_side", full)
    with pytest.raises(MemoryError):
        copied(source, tmp_path / "copy")
    assert content(tmp_path / "copy") == before


def test_a_second_one_at_the_same_place_is_refused(source, tmp_path):
    """While one is at work; not when it has ended, or was killed."""
    with shrink.begun(str(source), str(tmp_path / "copy"), **HOW):
        with pytest.raises(ConfigError, match=r"^another process is copying into .*copy; let it finish, or stop it$"):
            copied(source, tmp_path / "copy")
        assert list(content(tmp_path / "copy")) == [shrink.RECORD]
    assert len(copied(source, tmp_path / "copy")) == 20


def test_a_disk_of_coarse_times_keeps_its_copies(source, tmp_path):
    """FAT's are even seconds."""
    copied(source, tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*.*g"):
        even = file.stat().st_mtime_ns // (2 * 10**9) * (2 * 10**9)
        os.utime(file, ns=(even, even))
    assert {one.what for one in copied(source, tmp_path / "copy")} == {"kept"}
