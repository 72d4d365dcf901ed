"""Trees of images: an index changes nothing but the time, and is never believed where a folder has changed."""

import gzip
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from moco_jax.data import files, tree

HOUR = 3_600_000_000_000  # ns


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A tree of six images, an hour old by the clock and large enough for an index; caches are in tmp_path."""
    monkeypatch.setattr(tree, "MANY", 5)
    monkeypatch.setattr(tree.time, "time_ns", lambda now=time.time_ns: now() + HOUR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = tmp_path / "disk" / "images"
    for name in (
        "train/a/10.png",
        "train/a/2.png",
        "train/b/x\n.JPG",
        "val/a/1.png",
        "val/b/\udcff.png",
        "val/b/u.npy",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "train" / "a" / "notes.txt").touch()
    (folder / "train" / "empty").mkdir()
    return folder


@pytest.fixture
def looked(monkeypatch):
    """Names of the folders that were read from the disk."""
    names, inside = [], tree._inside
    monkeypatch.setattr(tree, "_inside", lambda folder: names.append(os.path.basename(folder)) or inside(folder))
    return names


def told(listing):
    """A listing as plain values."""
    return [value.tolist() if hasattr(value, "tolist") else value for value in listing]


def test_the_second_time_no_folder_is_read(root, looked):
    """One stat of each is all, and the listing is what it was: odd names, natural order, splits, what was left out."""
    first = told(files.list_folder(root))
    assert first[1][:2] == ["train/a/2.png", "train/a/10.png"] and first[-1] == 1 and len(looked) == 8
    looked.clear()
    assert told(files.list_folder(root)) == first and looked == []


@pytest.mark.parametrize("change", ["add", "remove", "rename", "unpacked", "folder"])
def test_a_changed_folder_is_read_again_and_no_other(root, looked, change):
    """A file or folder that comes, goes or is renamed; also by who sets the time of modification back, as tar does."""
    files.list_folder(root)
    folder = root / "train" / "a"
    if change == "add":
        (folder / "3.png").touch()
    elif change == "remove":
        (folder / "2.png").unlink()
    elif change == "rename":
        (folder / "2.png").rename(folder / "20.png")
    elif change == "unpacked":
        was = os.stat(folder)
        (folder / "3.png").touch()
        os.utime(folder, ns=(was.st_atime_ns, was.st_mtime_ns))
    else:
        (folder / "more").mkdir()
        (folder / "more" / "1.png").touch()
    looked.clear()
    after = tree.read(root)
    assert looked == (["a", "more"] if change == "folder" else ["a"])
    assert after == tree.scan(root, {})


@pytest.mark.parametrize("which", ["modification", "change"])
def test_a_folder_that_changed_just_now_is_not_believed(root, looked, monkeypatch, which):
    """A file that came within the same tick of the clock would leave the times: it is read again the next time."""
    for place, _, _ in os.walk(root):
        os.utime(place, ns=(0, time.time_ns() - 2 * HOUR))
    if which == "modification":
        os.utime(root / "val" / "b", ns=(0, time.time_ns()))
    else:  # set back by hand or by tar, but the disk knows
        monkeypatch.setattr(tree.time, "time_ns", lambda now=tree.time.time_ns: now() - HOUR)
    files.list_folder(root)
    looked.clear()
    files.list_folder(root)
    assert looked == ["b"] if which == "modification" else len(looked) == 8


def test_a_copied_index_costs_one_reading(root, looked):
    """Beside a copy that kept the times of modification: the disk's own are others, and are right from then on."""
    before = told(files.list_folder(root))[1:]
    copy = root.parent / "copy" / root.name
    shutil.copytree(root, copy)
    shutil.copy(next(tree.places(root)), copy.parent)
    looked.clear()
    assert told(files.list_folder(copy))[1:] == before and len(looked) == 8
    looked.clear()
    assert told(files.list_folder(copy))[1:] == before and looked == []


def test_it_stands_beside_the_tree_or_in_the_folder_for_caches(root, looked, tmp_path):
    """A read-only disk has it in the user's caches; where neither can be written there is none, and no error."""
    beside, cached = tree.places(root)
    assert beside.parent == root.parent and cached.parent == tmp_path / "caches" / "moco_jax"
    beside.mkdir()  # stands for a place that cannot be written, also for root
    (beside / "x").touch()
    files.list_folder(root)
    assert cached.is_file()
    looked.clear()
    files.list_folder(root)
    assert looked == []
    cached.unlink()
    cached.mkdir()
    (cached / "x").touch()
    assert len(files.list_folder(root).paths) == 6 and not list(root.parent.glob("*.part"))


def test_the_later_of_two_is_read(root, looked):
    """An old one beside the tree, of a time when that could be written, does not hide a new one."""
    files.list_folder(root)
    beside, cached = tree.places(root)
    cached.parent.mkdir(parents=True)
    beside.rename(cached)
    beside.write_bytes(gzip.compress(json.dumps({**tree.FORMAT, "folders": {}}).encode()))
    os.utime(beside, (0, 0))
    looked.clear()
    files.list_folder(root)
    assert looked == []


SHAPES = {  # valid JSON of our format, but for what `folders` is
    "list": [],
    "null": None,
    "number": {"": 5},
    "few": {"": [[1, 1], [], []]},
    "one time": {"": [1, [], [], 0]},
    "float": {"": [[1, 1.5], [], [], 0]},
    "other float": {"": [[1.5, 1], [], [], 0]},
    "three times": {"": [[1, 1, 1], [], [], 0]},
    "no lists": {"": [[1, 1], "ab", {}, 0]},
    "no name of a folder": {"": [[1, 1], ["a", None], [], 0]},
    "no name of an image": {"": [[1, 1], [], ["1.png", 3], 0]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_index_of_another_shape_is_made_again(root, shape):
    """Whole and of our format, and still not what we write: damaged, and no traceback."""
    expected = told(files.list_folder(root))
    beside = next(tree.places(root))
    whole = beside.read_bytes()
    beside.write_bytes(gzip.compress(json.dumps({**tree.FORMAT, "folders": SHAPES[shape]}).encode()))
    assert tree.kept(root) == {}
    assert told(files.list_folder(root)) == expected
    assert gzip.decompress(beside.read_bytes()) == gzip.decompress(whole)


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage", "other", "empty", "text"])
def test_a_damaged_or_foreign_index_is_made_again(root, looked, damage):
    """Cut off, changed in the middle, no gzip, of another format, empty, no JSON of ours."""
    expected = told(files.list_folder(root))
    beside = next(tree.places(root))
    whole = beside.read_bytes()
    other = json.loads(gzip.decompress(whole))
    other["suffixes"], other["folders"]["train/a"][2] = [".x"], ["1.x"]
    beside.write_bytes(
        {
            "cut": whole[:-20],
            "garbage": b"\x1f\x8b" + b"x" * 50,
            "flipped": whole[:20] + b"\xff" * 30 + whole[50:],
            "other": gzip.compress(json.dumps(other).encode()),
            "empty": b"",
            "text": gzip.compress(b'{"a": [1]}'),
        }[damage]
    )
    assert told(files.list_folder(root)) == expected
    assert gzip.decompress(beside.read_bytes()) == gzip.decompress(whole)


def test_a_small_tree_has_none(root, monkeypatch):
    """Nothing is written beside a few images."""
    monkeypatch.setattr(tree, "MANY", 7)
    files.list_folder(root)
    assert not any(place.exists() for place in tree.places(root))


def test_an_index_inside_of_a_larger_tree_is_no_file_of_it(root):
    """That of train stands beside train: the tree above does not count it among other files."""
    before = files.list_folder(root).left_out
    tree.keep(root / "train", {})
    assert next(tree.places(root / "train")).parent == root
    assert files.list_folder(root).left_out == before


def test_several_at_once_do_no_harm(root):
    """Eight readers of a tree that has none yet: all see the same, and what stays is whole."""
    found = [None] * 8

    def read(i):
        found[i] = told(files.list_folder(root))

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one == found[0] for one in found)
    assert tree.kept(root) == tree.scan(root, {}) and [p.name for p in Path(root.parent).glob("*.part")] == []


def test_who_writes_between_two_steps_of_another_does_no_harm(tmp_path, monkeypatch):
    """Each writes a part of its own: the last rename is what stays, and no part does."""
    replace, calls = Path.replace, []

    def late(part, file):
        calls.append(part)
        if len(calls) == 1:
            tree.write(file, b"second")
        return replace(part, file)

    monkeypatch.setattr(Path, "replace", late)
    tree.write(tmp_path / "index", b"first")
    assert (tmp_path / "index").read_bytes() == b"first" and os.listdir(tmp_path) == ["index"]


def test_what_may_never_end_is_no_image(root):
    """A pipe and a link to a device are left out; a link to nothing stays, as a bad file."""
    os.mkfifo(root / "val/a/pipe.png")
    (root / "val/a/full.png").symlink_to("/dev/full")
    (root / "val/a/gone.png").symlink_to("nowhere.png")
    found = tree.scan(root, {})["val/a"]
    assert found.names == ["1.png", "gone.png"] and found.left_out == 2


def test_links_are_followed_once(root, looked):
    """A link to a folder above ends there, from the index too, whatever way the root is spelled."""
    os.symlink(root / "train", root / "train" / "a" / "up")
    os.symlink(root / "val" / "a", root / "train" / "c")
    for path in (root, Path(os.path.relpath(root)), root):
        assert "train/c" in tree.read(path) and "train/a/up" not in tree.read(path)


@pytest.mark.parametrize("at_first", [True, False])
def test_what_a_link_leads_to_comes_and_goes(root, looked, tmp_path, at_first):
    """No folder of the tree changes with it: the listing is that of a tree without an index, and no error."""
    target, away = tmp_path / "elsewhere", tmp_path / "away"
    target.mkdir()
    (target / "1.png").touch()
    os.symlink(target, root / "train" / "c")
    os.symlink(root / "val" / "a" / "1.png", root / "val" / "b" / "file.png")  # one to a file: nothing to look at again
    for there in (at_first, not at_first, at_first):
        if there != target.exists():
            (away if there else target).rename(target if there else away)
        looked.clear()
        found = tree.read(root)
        assert ("train/c" in found) == there and next(tree.places(root)).exists()
        assert found == tree.scan(root, {})
    looked.clear()
    tree.read(root)
    assert looked == ["train"]
