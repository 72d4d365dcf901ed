"""Listings: every layout of a folder, manifests, the order of records, and each thing that cannot be."""

import os

import pytest

from moco_jax.config import ConfigError
from moco_jax.data import files


@pytest.fixture
def tree(tmp_path):
    """tree(path, ...) makes empty files below a folder, and returns it."""

    def make(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return tmp_path

    return make


@pytest.fixture
def manifest(tree, tmp_path):
    """manifest(text) writes a CSV file beside the images a.png, b.png, c.png and d/e.png."""
    tree("a.png", "b.png", "c.png", "d/e.png")

    def write(text, encoding="utf-8"):
        (tmp_path / "m.csv").write_text(text, encoding=encoding)
        return tmp_path / "m.csv"

    return write


def named(numbers, names):
    """Names for numbers, None for -1."""
    return None if numbers is None else [names[i] if i >= 0 else None for i in numbers]


def told(listing):
    """(path, label, group, split) of every record, by name."""
    labels = named(listing.labels, listing.class_names) or [None] * len(listing.paths)
    groups = named(listing.groups, listing.group_names) or [None] * len(listing.paths)
    return list(zip(listing.paths, labels, groups, listing.splits, strict=True))


def test_one_folder_of_class_folders(tree):
    """Folders are classes and groups, sorted; frame2 comes before frame10; the rest is left out and counted."""
    root = tree("dog/x.JPG", "cat/f10.png", "cat/f2.tif", "cat/.hidden.png", "notes.txt", "cat/notes.csv", ".git/a.png")
    listing = files.list_folder(root)
    assert told(listing) == [
        ("cat/f2.tif", "cat", "cat", "train"),
        ("cat/f10.png", "cat", "cat", "train"),
        ("dog/x.JPG", "dog", "dog", "train"),
    ]
    assert (listing.class_names, listing.root, listing.left_out) == (["cat", "dog"], root, 3)


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_split_folders_of_class_folders(tree, held_out):
    """Class numbers come from train, whether or not the other split has every class; more splits may stand beside."""
    listing = files.list_folder(tree("train/b/1.png", "train/a/1.png", f"{held_out}/b/1.png", "more/a/2.png"))
    assert listing.class_names == ["a", "b"] == listing.group_names
    assert sorted(told(listing)) == sorted(
        [
            ("train/a/1.png", "a", "a", "train"),
            ("train/b/1.png", "b", "b", "train"),
            (f"{held_out}/b/1.png", "b", "b", held_out),
            ("more/a/2.png", "a", "a", "more"),
        ]
    )


def test_flat_folders(tree, tmp_path):
    """Neither labels nor groups; a flat train may stand beside a val with classes, which it then names."""
    listing = files.list_folder(tree("one/2.png", "one/10.png").joinpath("one"))
    assert told(listing) == [("2.png", None, None, "train"), ("10.png", None, None, "train")]
    assert listing.labels is None and listing.groups is None
    tree("two/train/x.png", "two/val/k/y.png", "three/train/x.png")
    assert told(files.list_folder(tmp_path / "two")) == [
        ("train/x.png", None, None, "train"),
        ("val/k/y.png", "k", "k", "val"),
    ]
    assert told(files.list_folder(tmp_path / "three")) == [("train/x.png", None, None, "train")]


def test_nested_folders(tree):
    """The first folder is the class, the one that holds the image the group: class, patient, slices."""
    listing = files.list_folder(tree("ill/p1/a.png", "ill/p1/b.png", "ill/p2/a.png", "well/p3/scans/a.png"))
    assert told(listing) == [
        ("ill/p1/a.png", "ill", "ill/p1", "train"),
        ("ill/p1/b.png", "ill", "ill/p1", "train"),
        ("ill/p2/a.png", "ill", "ill/p2", "train"),
        ("well/p3/scans/a.png", "well", "well/p3/scans", "train"),
    ]


def test_a_class_may_be_called_train(tree):
    """`train` among folders none of which is held out is a class like any; whole numbers are sorted by value."""
    assert files.list_folder(tree("x/train/1.png", "x/bus/1.png") / "x").class_names == ["bus", "train"]
    assert files.list_folder(tree(*(f"n/{i}/1.png" for i in range(11))) / "n").class_names == [
        str(i) for i in range(11)
    ]


def test_links(tree, tmp_path):
    """A folder may be a link; one that leads back up is not followed for ever."""
    root = tree("root/a/1.png", "elsewhere/2.png") / "root"
    os.symlink(tmp_path / "elsewhere", root / "b")
    os.symlink(root, root / "a" / "loop")
    assert files.list_folder(root).paths == ["a/1.png", "b/2.png"]


def test_folders_that_cannot_be_listed(tree, tmp_path):
    """No folder, a file, no images, images beside folders of images, a class that train lacks: each in one line."""
    root = tree("file", "empty/notes.txt", "mixed/a.png", "mixed/k/a.png", "both/train/a.png", "both/train/k/a.png")
    tree("loose/train/k/a.png", "loose/val/k/a.png", "loose/a.png")
    tree("strange/train/a/1.png", "strange/val/z/1.png", "strange/val/y/1.png")
    for name, message in (
        ("absent", "absent is not there"),
        ("file", "file is a file, and no folder"),
        ("empty", r"empty holds no images \(1 other files\); images end in .jpg"),
        ("mixed", r"mixed holds images beside its folders of images \(1, such as a.png\)"),
        ("both", r"both/train holds images beside its folders"),
        ("loose", r"loose holds images beside its folders"),
        ("strange", r"class 'y' of val is not among the 1 classes of train \(a\), and 1 more are not"),
    ):
        with pytest.raises(ConfigError, match=message):
            files.list_folder(root / name)


def test_a_manifest(manifest, tmp_path):
    """Columns in any order, others ignored, blanks cut, absolute paths; records in the order of their paths."""
    path = manifest(
        f"split, group,note,path,label\nval,q,,b.png,1\ntrain,p,,{tmp_path}/c.png,10\ntrain,p,, d/e.png ,1\n"
    )
    listing = files.list_manifest(path)
    assert sorted(told(listing)) == sorted(
        [
            (f"{tmp_path}/c.png", "10", "p", "train"),
            ("b.png", "1", "q", "val"),
            ("d/e.png", "1", "p", "train"),
        ]
    )
    assert listing.class_names == ["1", "10"] and listing.root == tmp_path


def test_a_manifest_of_paths_alone(manifest):
    """No labels, no groups, the split train; Excel's byte order mark and a path with ./ do no harm."""
    listing = files.list_manifest(manifest("path\n./c.png\na.png\n", "utf-8-sig"))
    assert told(listing) == [("a.png", None, None, "train"), ("c.png", None, None, "train")]


def test_a_manifest_with_labels_in_one_split(manifest):
    """Training without labels beside a labelled val is no slip."""
    listing = files.list_manifest(manifest("path,label,split\na.png,,train\nb.png,k,val\n"))
    assert told(listing) == [("a.png", None, None, "train"), ("b.png", "k", None, "val")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,1\n", r"has no column 'path' in its first line \(file, label\)"),
        ("", r"has no column 'path' in its first line \(empty\)"),
        ("path\n", "names no images"),
        ("path,label\n,1\na.png,1\n", "path is empty in 1 of 2 rows"),
        (
            "path\nx1.png\nx2.png\na.png\nx3.png\nx4.png\n",
            r"4 files of 5 that are not there: x1.png, x2.png, x3.png, \.\.\.",
        ),
        ("path\na.png\nb.png\n./a.png\n", "names 1 files more than once: a.png"),
        ("path,label\na.png,1\nb.png,\nc.png,2\n", "label is empty in 1 of the 3 rows of split 'train'"),
        ("path,group\na.png,1\nb.png,\nc.png\n", "group is empty in 2 of the 3 rows"),
        ("path,split\na.png,train\nb.png,\n", "split is empty in 1 of 2 rows"),
        ("path,label,split\na.png,k,train\nb.png,z,val\n", "class 'z' of val is not among the 1 classes of train"),
    ],
)
def test_manifests_that_cannot_be_read(manifest, text, message):
    """Each slip in one line, with its numbers."""
    with pytest.raises(ConfigError, match=message) as caught:
        files.list_manifest(manifest(text))
    assert "\n" not in str(caught.value)


def test_missing_files_of_a_large_folder(tree, tmp_path, monkeypatch):
    """A folder of which many are named is looked at once; what it does not list is still looked for, one by one."""
    monkeypatch.setattr(files, "LOOK_AT_ALL", 3)
    tree("d/1.png", "d/2.png", "d/3.png", "d/dir.png/x", "e/1.png")
    os.symlink(tmp_path / "nowhere", tmp_path / "d" / "broken.png")
    os.symlink(tmp_path / "e" / "1.png", tmp_path / "d" / "link.png")
    asked, isfile = [], os.path.isfile
    monkeypatch.setattr(files.os.path, "isfile", lambda path: asked.append(os.path.basename(path)) or isfile(path))
    paths = [
        "d/1.png",
        "d/2.png",
        "d/3.png",
        "d/broken.png",
        "d/dir.png",
        "d/link.png",
        "d/none.png",
        "e/1.png",
        "e/2.png",
    ]
    assert files._missing(str(tmp_path), paths) == ["d/broken.png", "d/dir.png", "d/none.png", "e/2.png"]
    assert asked == ["broken.png", "dir.png", "none.png", "1.png", "2.png"]
    assert files._missing(str(tmp_path), ["f/1.png", "f/2.png", "f/3.png"]) == ["f/1.png", "f/2.png", "f/3.png"]


def test_a_manifest_that_is_no_text(tmp_path):
    """Another encoding, a folder, nothing."""
    (tmp_path / "m.csv").write_bytes(b"path\n\xff\xfe")
    with pytest.raises(ConfigError, match="is no CSV text in UTF-8"):
        files.list_manifest(tmp_path / "m.csv")
    with pytest.raises(ConfigError, match="absent.csv cannot be read: No such file"):
        files.list_manifest(tmp_path / "absent.csv")
