"""Features as a file: every image once under its name, in two formats; and a file that is whole or not there."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from moco_jax.config import Config, ConfigError, Data, Views
from moco_jax.data import opening
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import export, loading
from tests import tiny

COUNT = 11
CONFIG = Config(data=Data(dataset="mine", split="train[:9]", data_dir="here", channels=1), views=Views(size=4))


class Folder(ArraySource):
    """Images with all that a source may know of them."""

    class_names = ("cat", "dog", "émeu")
    group_names = tuple(f"p{i}" for i in range(6))

    def names(self):
        return [f"cats/{i}.png" for i in range(len(self))]

    def groups(self):
        return np.arange(len(self)) // 2


def images(channels=1):
    """(11, 6, 6, channels): image i holds i in its centre, and 200 around it."""
    out = np.full((COUNT, 6, 6, channels), 200, np.uint8)
    out[:, 1:5, 1:5] = np.arange(COUNT, dtype=np.uint8)[:, None, None, None]
    return out


class Bench:
    """A run whose features are the value of an image, times 1 and times 2; `opened` holds what was asked for."""

    def __init__(self, monkeypatch):
        self.config, self.source, self.opened, self.calls = CONFIG, "", [], []
        self.found = Folder(images(), np.arange(COUNT) % 3, name="mine/train[:9]")
        monkeypatch.setattr(loading, "load", self.load)
        monkeypatch.setattr(opening, "open_split", self.open_split)

    def features(self, x):
        self.calls.append(len(x))
        value = x[:, 0, 0].astype(np.float64)
        return {"backbone": np.repeat(value, 3, 1), "head": 2 * value}

    def load(self, run):
        how = tiny.preprocessing(4, 1, resize=6)
        trained = frozen.FrozenEncoder(self.features, None, "fake", how, None)
        return loading.Loaded(trained, trained, None, self.config, 8, self.source, 20, None)

    def open_split(self, data, split, *, name=None, data_dir=None):
        self.opened.append((name or data.dataset, split, data_dir or data.data_dir, data.channels))
        return self.found


@pytest.fixture
def bench(monkeypatch):
    """A run of 11 images in a folder of its own."""
    return Bench(monkeypatch)


def test_every_image_once_under_its_name(bench, tmp_path):
    """Rows in order, the tail of a batch included, with name, number, label, group and the names of classes."""
    export.export("run", tmp_path / "a.npz", batch_size=4)
    with np.load(tmp_path / "a.npz") as got:
        assert set(got) == {"features", "names", "ids", "labels", "groups", "class_names", "group_names"}
        np.testing.assert_array_equal(got["features"], np.repeat(np.arange(COUNT), 3).reshape(COUNT, 3))
        assert got["features"].dtype == np.float32
        assert got["names"].tolist() == [f"cats/{i}.png" for i in range(COUNT)]
        np.testing.assert_array_equal(got["ids"], np.arange(COUNT))
        np.testing.assert_array_equal(got["labels"], np.arange(COUNT) % 3)
        np.testing.assert_array_equal(got["groups"], np.arange(COUNT) // 2)
        assert got["class_names"].tolist() == ["cat", "dog", "émeu"]
        assert got["group_names"].tolist() == [f"p{i}" for i in range(6)]
    assert bench.opened == [("mine", "train[:9]", "here", 1)] and bench.calls == [4, 4, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_what_a_source_does_not_know_is_not_there(bench, tmp_path):
    """No labels of -1 and no groups of 0: the keys are absent; a name is then the split and the number."""
    bench.found = ArraySource(images(), name="set/test[:9]")
    arrays = export.export("run", tmp_path / "a.npz", images="set", split="test[:9]", feature="head")
    assert set(arrays) == {"features", "names", "ids"} and arrays["names"][10] == "test[:9]/10"
    np.testing.assert_array_equal(arrays["features"], 2.0 * np.arange(COUNT)[:, None])
    assert bench.opened == [("set", "test[:9]", "here", 1)] and bench.calls == [COUNT]


def test_other_images_are_those_asked_for(bench, tmp_path):
    """With a folder of their own; their split is train where none is named, whatever part the run was trained on."""
    export.export("run", tmp_path / "a.npz", images="set", data_dir="there")
    export.export("run", tmp_path / "a.npz", split="test")
    assert bench.opened == [("set", "train", "there", 1), ("mine", "test", "here", 1)]


def test_a_folder_of_classes_is_named_by_its_files(bench, tmp_path, monkeypatch):
    """The run was trained on something else: paths below the folder, labels by the names of its class folders."""
    for i in range(5):
        file = tmp_path / "pets" / ("cat" if i % 2 else "ant") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images()[i, :, :, 0]).save(file)
    monkeypatch.undo()
    monkeypatch.setattr(loading, "load", bench.load)
    arrays = export.export("run", tmp_path / "a.npz", images=str(tmp_path / "pets"))
    assert arrays["names"].tolist() == ["ant/0.png", "ant/2.png", "ant/4.png", "cat/1.png", "cat/3.png"]
    np.testing.assert_array_equal(arrays["features"][:, 0], [0, 2, 4, 1, 3])
    assert arrays["labels"].tolist() == [0, 0, 0, 1, 1] and arrays["class_names"].tolist() == ["ant", "cat"]


def test_digits_have_the_names_of_their_classes(tmp_path):
    """A TFDS data set knows its labels and their names; its records have none."""
    known = export.described(opening.open_split(Data(data_dir=str(tmp_path)), "test[:3]"), "test[:3]")
    assert set(known) == {"names", "ids", "labels", "class_names"}
    assert known["class_names"].tolist() == [str(i) for i in range(10)] and known["names"][2] == "test[:3]/2"


def test_parquet_holds_the_same_in_rows(bench, tmp_path):
    """One row for each image, features of a fixed length, class names beside the schema."""
    parquet = pytest.importorskip("pyarrow.parquet")
    arrays = export.export("run", tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.num_rows == COUNT and str(table.schema.field("features").type) == "fixed_size_list<element: float>[3]"
    for name in ("names", "ids", "labels", "groups", "features"):
        np.testing.assert_array_equal(table[name].to_pylist(), arrays[name])
    assert json.loads(table.schema.metadata[b"class_names"]) == ["cat", "dog", "émeu"]
    assert json.loads(table.schema.metadata[b"group_names"])[5] == "p5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "a.csv"}, "a.csv must end in .npz or .parquet"),
        ({"output": "none/a.npz"}, "a.npz cannot be written: there is no folder .*none"),
        ({"output": "run/checkpoints/a.npz"}, "a.npz lies among the checkpoints of"),
        ({"output": "folder.npz"}, "folder.npz is a folder; give a file"),
        ({"feature": "heed"}, r"feature 'heed' is unknown; did you mean 'head'\? \(one of: backbone, head\)"),
    ],
)
def test_what_cannot_be_written_is_known_before_anything_is_encoded(bench, tmp_path, arguments, message):
    """One line, no image encoded, nothing left behind."""
    for folder in ("run/checkpoints", "folder.npz"):
        (tmp_path / folder).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    output = tmp_path / arguments.get("output", "a.npz")
    with pytest.raises(ConfigError, match=message):
        export.export(tmp_path / "run", output, feature=arguments.get("feature", "backbone"))
    assert bench.calls == [] and sorted(tmp_path.rglob("*")) == before


def test_a_run_may_hold_its_features(bench, tmp_path):
    """Its folder is the natural place; only the checkpoints are closed."""
    (tmp_path / "checkpoints").mkdir()
    export.export(tmp_path, tmp_path / "features.npz")
    assert (tmp_path / "features.npz").is_file()


def test_the_images_of_a_users_own_source_are_asked_for(bench, tmp_path):
    """The config names others, which the run never saw; with images named it goes on."""
    bench.source = "frames"
    with pytest.raises(ConfigError, match="run was trained on a source of your own, 'frames': say which"):
        export.export("run", tmp_path / "a.npz")
    export.export("run", tmp_path / "a.npz", images="set")


def test_images_of_another_kind_are_refused_at_once(bench, tmp_path):
    """Before the file is begun."""
    bench.found = ArraySource(images(3), name="set/train")
    with pytest.raises(
        ConfigError, match=r"set/train: record 0 is uint8 \(6, 6, 3\); the encoder takes images \(H, W, 1"
    ):
        export.export("run", tmp_path / "a.npz")
    assert bench.calls == [] and list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_the_file_before(bench, tmp_path):
    """An image that cannot be read: the old features stay, and no part of the new ones."""
    (tmp_path / "a.npz").write_bytes(b"old")
    bench.found.images = [*images()[:-1], np.zeros((6, 6, 2), np.uint8)]
    with pytest.raises(ConfigError, match=r"record 10 \(cats/10.png\) has 2 channels"):
        export.export("run", tmp_path / "a.npz", batch_size=4)
    assert (tmp_path / "a.npz").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    assert bench.calls == [4, 4]


def test_the_new_file_takes_the_place_of_the_old(bench, tmp_path):
    """It is not written over: whoever has the old one open, here by another name, keeps it whole."""
    (tmp_path / "a.npz").write_bytes(b"old")
    (tmp_path / "same").hardlink_to(tmp_path / "a.npz")
    export.export("run", tmp_path / "a.npz")
    assert (tmp_path / "same").read_bytes() == b"old" and (tmp_path / "a.npz").stat().st_size > 500


def test_parquet_without_pyarrow_names_the_extra(bench, tmp_path, monkeypatch):
    """Before anything is encoded."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'needs pyarrow: pip install "moco_jax\[parquet\]", or write .npz'):
        export.export("run", tmp_path / "a.parquet")
    assert bench.calls == []


def test_it_says_which_split_was_taken(bench, tmp_path):
    """Of images that are named the split train, unless one is named; of the run's own that of the run."""
    said = []
    export.export("run", tmp_path / "a.npz", images="photos", say=said.append)
    export.export("run", tmp_path / "b.npz", images="photos", split="val", say=said.append)
    export.export("run", tmp_path / "c.npz", say=said.append)
    own = "11 images: split train[:9] of the images it was trained on"
    assert said[1::2] == ["11 images: split train of photos", "11 images: split val of photos", own]
