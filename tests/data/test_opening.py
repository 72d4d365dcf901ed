"""The opener: which of the four keys, splits and slices of files, arrays, and what a text names."""

import dataclasses
import hashlib

import numpy as np
import pytest
from PIL import Image

from moco_jax.config import ConfigError, Data
from moco_jax.data import files, loader, measured, opening, sources, tfds

RNG = np.random.default_rng(0)


def picture(path, shape=(5, 7, 3)):
    """Write a PNG of random pixels, and return them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def photos(tmp_path):
    """train with classes a and b, two images each, and val with one of b; and their pixels by path."""
    names = ("train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png", "val/b/1.png")
    return tmp_path / "photos", {name: picture(tmp_path / "photos" / name) for name in names}


def of(**keys):
    return dataclasses.replace(Data(dataset=None), **{k: str(v) for k, v in keys.items()})


def listing(count, groups=None, split="train"):
    """A flat listing of `count` files, in groups if given."""
    names = sorted(set(groups or ()))
    numbers = None if groups is None else np.array([names.index(g) for g in groups])
    return files.Listing("/x", [f"{i:03}.png" for i in range(count)], None, [], numbers, names, [split] * count, 0)


def test_a_split_of_a_folder_is_a_source(photos):
    """Pixels, labels, groups, names and classes of the records; a number out of range ends iteration."""
    folder, truth = photos
    train = opening.open_split(of(folder=folder), "train")
    assert isinstance(train, sources.Source) and len(train) == 4 and train.classes == 2
    assert train.names() == sources.names_of(train) == list(truth)[:4]
    assert train.labels().tolist() == train.groups().tolist() == [0, 0, 1, 1]
    assert sources.class_names_of(train) == ["a", "b"]
    for image, name in zip(train, train.names(), strict=True):
        np.testing.assert_array_equal(image, truth[name])
    with pytest.raises(IndexError):
        train[-1]
    val = opening.open_split(of(folder=folder), "val")
    assert (val.labels().tolist(), val.classes, val.name) == ([1], 2, f"{folder} (val)")
    assert len(opening.open_split(of(folder=folder), "train+val")) == 5


def test_a_manifest_is_a_source(photos, tmp_path):
    """Paths relative to the manifest; labels of one split alone are the labels of that split."""
    rows = ["path,label,split", "photos/train/a/1.png,,train", "photos/train/b/1.png,x,val"]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    train, val = (opening.open_split(of(manifest=tmp_path / "m.csv"), s) for s in ("train", "val"))
    assert (train.labels(), train.classes, train.groups()) == (None, None, None)
    assert (val.labels().tolist(), val.classes) == ([0], 1)
    np.testing.assert_array_equal(val[0], photos[1]["train/b/1.png"])


def test_channels_are_converted_when_asked_for(tmp_path):
    """Gray among colour: an error that names both files and counts; with data.channels=3 both are colour."""
    picture(tmp_path / "p" / "a.png")
    gray = picture(tmp_path / "p" / "b.png", (5, 7))
    source = opening.open_split(of(folder=tmp_path / "p"), "train")
    for meet in (lambda: source[1], lambda: measured.measure(source, Data(mean=(0.5,) * 3, std=(0.5,) * 3))):
        with pytest.raises(
            ConfigError, match=r"record 1 \(b.png\) has 1 channel and record 0 \(a.png\) 3 channels; set"
        ):
            meet()
    colour = opening.open_split(dataclasses.replace(of(folder=tmp_path / "p"), channels=3), "train")
    np.testing.assert_array_equal(colour[1], np.repeat(gray[..., None], 3, 2))
    with pytest.raises(ConfigError, match="data.channels 2 is no conversion"):
        opening.open_split(dataclasses.replace(of(folder=tmp_path / "p"), channels=2), "train")


def test_a_damaged_file_is_named(photos):
    """By the facts and by the loader's threads alike."""
    folder, _ = photos
    (folder / "train/b/1.png").write_bytes(b"nothing")
    source = opening.open_split(of(folder=folder), "train")
    with pytest.raises(ConfigError, match=r"photos \(train\): train/b/1.png is no image that can be read"):
        loader.resident(source, 2)


def test_sizes_that_differ_name_both_files(tmp_path):
    """On the resident path."""
    picture(tmp_path / "p" / "a.png")
    picture(tmp_path / "p" / "b.png", (6, 7, 3))
    with pytest.raises(ConfigError, match=r"record 1 \(b.png\) is 6x7 pixels and record 0 \(a.png\) 5x7; .*streamed"):
        loader.resident(opening.open_split(of(folder=tmp_path / "p"), "train"), 1)


def test_slices_partition_a_split_and_are_stable():
    """train[:90%] and train[90%:] hold each record once, sorted, at random, and the same ones for ever."""
    head, tail = (opening.chosen(listing(50), s, name="x") for s in ("train[:90%]", "train[90%:]"))
    assert (len(head), len(tail)) == (45, 5) and sorted([*head, *tail]) == list(range(50))
    assert head.tolist() == sorted(head)
    assert tail.tolist() == STABLE  # a resumed run counts on it
    assert opening.chosen(listing(50), "train", name="x").tolist() == list(range(50))
    assert opening.chosen(listing(50), "train[-7:]+train[:3]", name="x").size == 10
    assert opening.chosen(listing(50), "train[:7]+train[:9]", name="x").size == 9
    some = opening.chosen(listing(40), "train[:20]", name="x")  # names decide: the first 40 stand in the same order
    assert set(some) >= set(opening.chosen(listing(50), "train[:20]", name="x").tolist()) & set(range(40))


STABLE = [1, 10, 11, 38, 46]


def test_slices_keep_groups_whole_but_for_one():
    """Ten groups of five: half of them, and two records of the one at the border."""
    many = listing(50, [f"patient{i % 10}" for i in range(50)])
    inside = np.bincount(opening.chosen(many, "train[:27]", name="x") % 10, minlength=10)
    assert sorted(inside) == [0, 0, 0, 0, 2, 5, 5, 5, 5, 5]


def test_slices_of_class_folders_hold_every_class():
    """Class folders are groups as well; a slice takes whole ones only where the caller says that groups matter."""
    groups = [f"class{i % 10}" for i in range(50)]
    classes = listing(50, groups)._replace(class_names=sorted(set(groups)))
    inside = np.bincount(opening.chosen(classes, "train[:40]", name="x") % 10, minlength=10)
    assert inside.max() == 5 and sorted(inside) != [0, 0, 5, 5, 5, 5, 5, 5, 5, 5]
    inside = np.bincount(opening.chosen(classes, "train[:40]", name="x", groups_matter=True) % 10, minlength=10)
    assert sorted(inside) == [0, 0, 5, 5, 5, 5, 5, 5, 5, 5]


@pytest.mark.parametrize("split", ["nope", "train[20:20]", "train[5:2]", "train[", ""])
def test_unknown_split_lists_the_splits(photos, split):
    """As for TFDS data sets."""
    with pytest.raises(
        ConfigError, match=r"split .* holds no images.*its splits: train \(4 images\), val \(1 images\)$"
    ):
        opening.open_split(of(folder=photos[0]), split)


def test_exactly_one_key_says_where_images_are(tmp_path):
    """None of the four, or two: the data set of a page has to be cleared."""
    with pytest.raises(ConfigError, match="no images are named: set one of data.dataset, data.folder, data.manifest"):
        opening.open_split(of(), "train")
    both = dataclasses.replace(Data(), folder=str(tmp_path))
    with pytest.raises(ConfigError, match=r"data.dataset='digits' and data.folder=.*; set --config.data.dataset=None$"):
        opening.open_split(both, "train")


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 4, 5, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays(tmp_path, shape, dtype):
    """Mapped, not read; slices in the array's order; no labels; what comes out is a copy that may be changed."""
    images = (RNG.random(shape) * 200).astype(dtype)
    np.save(tmp_path / "x.npy", images)
    source = opening.open_split(of(array=tmp_path / "x.npy"), "train[2:]")
    assert isinstance(source.images, np.memmap) and source.labels() is None and source.classes is None
    assert isinstance(source, sources.Source)
    np.testing.assert_array_equal(np.stack(list(source)), images.reshape(6, 4, 5, -1)[2:])
    assert loader.resident(source, 2)["images"].dtype == dtype
    with pytest.raises(IndexError):
        source[4]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 4), np.int16), r"holds int16 \(3, 4, 4\); images are \(N, H, W, C\)"),
        (np.zeros((3, 4), np.uint8), r"holds uint8 \(3, 4\)"),
        (np.zeros((3, 4, 4), ">u2"), r"holds >u2 \(3, 4, 4\); .* native byte order"),
        (np.zeros((0, 4, 4), np.uint8), "holds no images"),
        (np.array([{}]), "no whole .npy file"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, message):
    """Never converted; what is held and what to do."""
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(ConfigError, match=message):
        opening.open_split(of(array=tmp_path / "x.npy"), "train")


def test_files_that_are_no_arrays(tmp_path):
    """A text, a cut file, no file, an .npz."""
    (tmp_path / "text.npy").write_text("text")
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 4), np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-5])
    np.savez(tmp_path / "z.npz", a=np.zeros((3, 4, 4), np.uint8))
    for name, message in (
        ("text.npy", "is no whole .npy file"),
        ("cut.npy", "is no whole .npy file"),
        ("absent.npy", "cannot be read: No such file"),
        ("z.npz", "holds several arrays"),
    ):
        with pytest.raises(ConfigError, match=message):
            opening.open_array(str(tmp_path / name), "train")


def test_a_text_names_what_is_there(photos, tmp_path, monkeypatch):
    """A folder, a manifest, an array, or else a data set, as eval.data and the probe's dataset say it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").write_text("path\nphotos/train/a/1.png\n")
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 4), np.uint8))
    (tmp_path / "data").mkdir()
    found = {n: len(opening.open_split(Data(), "train", name=n)) for n in ("photos", "./photos/", "m.csv", "x.npy")}
    assert found == {"photos": 4, "./photos/": 4, "m.csv": 1, "x.npy": 3}
    for name in ("digits", "./digits"):
        (tmp_path / "digits" / "k").mkdir(parents=True, exist_ok=True)
        picture(tmp_path / "digits" / "k" / "1.png")
        assert opening._kind(name, str(tmp_path / "data"))[0] == ("dataset" if name == "digits" else "folder")
    folders = [opening.folder_of(n, str(tmp_path / "data")) for n in ("digits", "./digits", "m.csv", "./nope", "nope")]
    assert folders == [None, (tmp_path / "digits").resolve(), None, None, None]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nope", "'./nope' is not there: no such folder"),
        ("photos/nope", "'photos/nope' is not there: no such folder, and no such data set in"),
        ("~/nope", "'~/nope' is not there"),
        ("nope.csv", "nope.csv cannot be read"),
        ("nope.npy", "nope.npy cannot be read"),
        ("photos/val/b/1.png", "is a file; a folder, a .csv or an .npy file is needed"),
        ("digit", "did you mean 'digits'"),
    ],
)
def test_a_text_that_names_nothing(photos, tmp_path, monkeypatch, name, message):
    """A path that does not exist says so; a bare name is looked up among data sets."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        opening.open_split(Data(), "train", name=name, data_dir=str(tmp_path))


def test_labels_of_a_part_are_no_labels(tmp_path):
    """Splits with and without labels together have none: no image is of class -1."""
    for path in ("train/a/1.png", "train/b/2.png", "val/3.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / path)
    listing = files.list_folder(tmp_path)
    assert opening.of_listing(listing, "train", name="x").labels().tolist() == [0, 1]
    assert opening.of_listing(listing, "train+val", name="x").labels() is None


def test_a_file_is_the_same_by_whatever_way_it_was_opened(photos, tmp_path, monkeypatch):
    """Folder, manifest, a relative path, a linked folder; the places of an array file."""
    folder = photos[0]
    rows = ["path,label", "photos/train/a/1.png,x", f"{folder}/train/b/2.png,y"]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    (tmp_path / "link").symlink_to(folder)
    train = opening.open_split(of(folder=folder), "train")
    assert sources.shared(train, opening.open_split(of(manifest=tmp_path / "m.csv"), "train")).tolist() == [0, 3]
    assert len(sources.shared(train, opening.open_split(of(folder=tmp_path / "link"), "train"))) == 4
    assert len(sources.shared(train, opening.open_split(of(folder=folder), "val"))) == 0
    monkeypatch.chdir(tmp_path)
    assert len(sources.shared(train, opening.open_split(of(folder="photos"), "train+val"))) == 4
    np.save(tmp_path / "x.npy", np.zeros((9, 4, 4), np.uint8))
    tail, head = opening.open_array("x.npy", "train[5:]"), opening.open_array(str(tmp_path / "x.npy"), "train[:7]")
    assert sources.shared(tail, head).tolist() == [0, 1]


def test_features_are_those_of_the_data_set_that_has_them(monkeypatch, tmp_path):
    """A run's own in its own data set, by any of its names; "image" and "label" in another; else what is asked for."""
    opened = []

    def open_source(dataset, split, *, data_dir, channels, image, label):
        opened.append((dataset, image, label))

    monkeypatch.setattr(tfds, "open_source", open_source)
    monkeypatch.setattr(tfds, "is_known", lambda name, folder: True)
    run = Data(dataset="clips/big", image_feature="frames/rgb", label_feature="kind")
    for asked in ({}, {"name": "clips/big:1.0.0"}, {"name": "clips"}, {"name": "cifar10"}):
        opening.open_split(run, "train", **asked)
    opening.open_split(run, "train", name="cifar10", features=("picture", None))
    opening.open_split(run, "train", features=(None, "age"))
    opening.open_split(dataclasses.replace(run, dataset=None, folder=str(tmp_path)), "train", name="cifar10")
    own, other = ("frames/rgb", "kind"), ("image", "label")
    assert opened == [
        *(("clips/big", *own), ("clips/big:1.0.0", *own), ("clips", *own), ("cifar10", *other)),
        *(("cifar10", "picture", "label"), ("clips/big", "frames/rgb", "age"), ("cifar10", *other)),
    ]


def test_a_runs_own_images_are_opened_where_others_may_be_among_them(photos, tmp_path, digits_dir):
    """Files beside files, a data set beside the same one in its folder; else None. Gone is an error."""
    folder = photos[0]
    run = dataclasses.replace(of(folder=folder), split="val")
    assert opening.own_split(run).names() == ["val/b/1.png"]
    assert opening.own_split(run, name=str(folder)).name == f"{folder} (val)"
    assert opening.own_split(run, name="digits", data_dir=digits_dir) is None
    digits = Data(dataset="digits", data_dir=digits_dir, split="train[:7]")
    assert len(opening.own_split(digits, name="digits:1.0.0")) == 7
    assert opening.own_split(digits, name="digits", data_dir=str(tmp_path / "other")) is None
    assert opening.own_split(digits, name=str(folder)) is None
    assert not (tmp_path / "other").exists()  # nothing is prepared to be compared
    for image in folder.rglob("*.png"):
        image.unlink()
    gone = of(folder=tmp_path / "gone")
    assert opening.own_split(gone, name="digits", data_dir=digits_dir) is None
    for data, name, words in (
        (run, None, "holds no"),
        (gone, None, "is not there"),
        (gone, str(photos[0]), "not there"),
    ):
        with pytest.raises(ConfigError, match=words):
            opening.own_split(data, name=name)


@pytest.mark.parametrize("by_group", [False, True])
def test_slices_go_by_the_digests_of_names(by_group):
    """As defined, record by record: digests of paths, or of groups' names where there is one; then places."""
    numbers = np.array([i % 7 - 1 for i in range(200)])
    listing = files.Listing(
        "/x", [f"\udcff{i}.png" for i in range(200)], None, [], numbers, [f"g{i}" for i in range(6)], ["train"] * 200, 0
    )

    def digest(i):
        name = listing.group_names[numbers[i]] if by_group and numbers[i] >= 0 else listing.paths[i]
        return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()

    places = np.arange(3, 200)
    expected = sorted(places.tolist(), key=lambda i: (digest(i), i))
    assert opening._mixed(listing, places, by_group=by_group).tolist() == expected
