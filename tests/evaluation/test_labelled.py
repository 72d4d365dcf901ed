"""Train and test images: labels on both sides, nothing shared, of the encoder's kind."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from moco_jax.config import ConfigError, Data
from moco_jax.data import digits, opening, sources
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import labelled
from moco_jax.evaluation.encoder import Values
from moco_jax.protocols import Labelled
from tests.evaluation import small

LIKE = Values(1, "uint8", 0.0, 255.0)


@pytest.fixture
def splits(monkeypatch):
    """{name: source} of what is opened."""
    found = {"train": small.source(60, 0, "train"), "test": small.source(30, 1, "test")}
    monkeypatch.setattr(opening, "open_split", lambda data, split, **_: found[split])
    return found


def open_pair(**changes):
    return labelled.open_pair(Labelled(**changes), Data(), seed=0, like=LIKE)


def test_the_splits_are_those_named(splits):
    """With classes by number where they have no names."""
    pair = open_pair()
    assert (pair.classes, pair.class_names, pair.test_is) == (3, ["0", "1", "2"], "split test")
    assert (len(pair.train.labels), len(pair.test.labels)) == (60, 30) and pair.train.groups is None


def test_a_share_is_set_apart_where_there_is_no_test_split(splits):
    """By class, or by whole groups; records, names and labels go together."""
    pair = open_pair(test_split=None)
    assert (len(pair.train.labels), len(pair.test.labels)) == (48, 12)
    assert not set(pair.train.source.names()) & set(pair.test.source.names())
    np.testing.assert_array_equal(pair.test.source.labels(), pair.test.labels)
    where = splits["train"].names().index(pair.test.source.names()[3])
    np.testing.assert_array_equal(pair.test.source[3], splits["train"][where])
    splits["train"] = small.source(60, 0, "train", groups=np.arange(60) // 6)
    pair = open_pair(test_split=None)
    assert not set(pair.train.groups) & set(pair.test.groups) and "by whole groups" in pair.test_is
    with pytest.raises(ConfigError, match="test_share must lie between 0 and 1"):
        open_pair(test_split=None, test_share=1.0)


def test_a_group_on_both_sides_is_refused_unless_asked_for(splits):
    """Patients 0 to 4 were partly seen."""
    splits["train"] = small.source(60, 0, "train", groups=np.arange(60) // 6)
    splits["test"] = small.source(30, 1, "test", groups=np.arange(30) // 6)
    with pytest.raises(ConfigError, match="5 groups are on both sides, such as 0: what is tested was partly seen"):
        open_pair()
    assert open_pair(shared_groups=True).test.groups is not None


def test_images_on_both_sides_are_refused(splits):
    """By their names, and by equal splits where they have none."""
    with pytest.raises(ConfigError, match=r"60 images are on both sides, such as record 0 \(train/0.png\)"):
        open_pair(test_split="train")
    splits["train"] = ArraySource(splits["train"].images, splits["train"].given)
    with pytest.raises(ConfigError, match="are both 'train'"):
        open_pair(test_split="train")


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    """A TFDS folder that holds the digits."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    digits.prepare(folder)
    return folder


@pytest.mark.parametrize(
    ("train", "test", "count"),
    [
        ("train", "train[:300]", 300),
        ("train[:1000]", "train[500:]", 500),
        ("train+test", "test", 297),
        ("train[:4]+train", None, 4),  # named twice: a copy on either side
    ],
)
def test_images_on_both_sides_are_refused_for_tfds(digits_dir, train, test, count):
    """By the places in the data set that the splits stand for; the number is that of images, not of names."""
    run = Data(dataset="digits", data_dir=digits_dir)
    found = r"\d" if test is None else count  # which of the copies are set apart is by the seed
    with pytest.raises(
        ConfigError, match=f"^{found} images are on both sides, such as record .*: name splits that share"
    ):
        labelled.open_pair(Labelled(train_split=train, test_split=test, test_share=0.5), run, seed=0)


def test_images_that_were_pretrained_on_are_counted(digits_dir, tmp_path):
    """Where the run's own split holds test images, whether the data were named or not; not where it holds none."""

    def words(run, **changes):
        data = Data(dataset="digits", data_dir=digits_dir, split=run)
        own = changes.pop("own_source", "")
        return labelled.open_pair(Labelled(**changes), data, seed=0, own_source=own).test_is

    seen = "of its 300 images were pretrained on, without labels"
    named = {"dataset": "digits", "data_dir": digits_dir}
    half = {"train_split": "train[:1000]", "test_split": "train[1200:]"}
    assert words("train", test_split=None) == f"20% of train set apart by class, seed 0; 300 {seen}"
    assert words("train[:1300]", **half) == f"split train[1200:]; 100 {seen}"
    assert words("train[:1300]", **half, **named) == f"split train[1200:]; 100 {seen}"
    assert words("train", **named) == words("train") == "split test"
    assert words("train", **half, **named, own_source="mine") == "split train[1200:]"
    assert words("train[:1300]+train", **half) == f"split train[1200:]; 300 {seen}"  # each counts once
    digits.prepare(str(tmp_path))  # another data set
    assert words("train", test_split=None, dataset="digits", data_dir=str(tmp_path)).endswith("by class, seed 0")
    unknown = "split train[1200:]; whether it was pretrained on is not known (split 'gone' of 'digits' holds no images "
    assert words("gone", **half).startswith(unknown)


def test_a_folder_that_was_renamed_hides_nothing(tmp_path, digits_dir):
    """The run trained on the very test images, which are elsewhere now: it is not known, and why; a data set of TFDS,
    which is no folder, holds none of them."""
    for i in range(8):
        file = tmp_path / "old" / ("train", "val")[i // 4] / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(file)
    run = Data(dataset=None, folder=str(tmp_path / "old"), split="val")
    named = Labelled(dataset=f"{tmp_path}/old", test_split="val")
    seen = "split val; 4 of its 4 images were pretrained on, without labels"
    assert labelled.open_pair(named, run, seed=0).test_is == seen
    (tmp_path / "old").rename(tmp_path / "new")
    named = dataclasses.replace(named, dataset=f"{tmp_path}/new")
    unknown = "split val; whether it was pretrained on is not known (data.folder="
    assert labelled.open_pair(named, run, seed=0).test_is.startswith(f"{unknown}'{tmp_path}/old' is not there (")
    other = Labelled(dataset="digits", data_dir=digits_dir)
    assert labelled.open_pair(other, run, seed=0).test_is == "split test"
    assert labelled.open_pair(other, Data(dataset=None), seed=0).test_is == "split test"  # a file of weights


def test_a_source_that_cannot_tell_is_said_to_be_one(splits, monkeypatch):
    """Records without names or places: not known, and not none."""
    splits["test"] = ArraySource(splits["test"].images, splits["test"].labels(), name="test")
    assert "not known (test or train does not say which records it holds)" in open_pair().test_is


def test_features_that_the_page_names(splits, monkeypatch):
    """The page's own features are asked for in train and test; those of the run stand where it names none."""
    asked, open_split = [], opening.open_split

    def watched(run, split, **named):
        asked.append((split, named.pop("features")))
        return open_split(run, split, **named)

    monkeypatch.setattr(opening, "open_split", watched)
    open_pair(image_feature="frames/rgb", label_feature="kind")
    open_pair()
    named, none = ("frames/rgb", "kind"), (None, None)
    assert asked == [("train", named), ("test", named), ("train", none), ("test", none)]


def test_what_cannot_be_judged_is_refused(splits):
    """No labels on either side, one class, a class without train images, another kind of images, own images unnamed."""
    train, test = splits["train"], splits["test"]
    for name in ("train", "test"):
        splits[name] = ArraySource(splits[name].images, name=f"mine/{name}")
        with pytest.raises(ConfigError, match=f"mine/{name} has no labels; an evaluation needs some"):
            open_pair()
        splits.update(train=train, test=test)
    splits["train"] = ArraySource(train.images, np.zeros(60, int), name="one")
    with pytest.raises(ConfigError, match="one holds one class alone"):
        open_pair()
    splits["train"] = ArraySource(train.images, np.arange(60) % 2)
    with pytest.raises(ConfigError, match=r"1 classes of test have no train image \(2\)"):
        open_pair()
    splits["train"] = ArraySource(np.repeat(train.images, 3, axis=3), train.given)
    with pytest.raises(ConfigError, match="of 3 channels, and the encoder takes uint8 of 1"):
        open_pair()
    with pytest.raises(ConfigError, match="a source of your own, 'mine': name labelled data"):
        labelled.open_pair(Labelled(), Data(), seed=0, own_source="mine")
    with pytest.raises(ConfigError, match="data.workers must be 1"):
        open_pair(workers=0)


def test_folders_of_classes_are_no_groups(splits):
    """Each class is then a group of its own, on both sides, as it should be."""
    for name, count in (("train", 60), ("test", 30)):
        splits[name] = small.source(count, 0, name, groups=np.arange(count) % 3)
        splits[name].class_names = splits[name].group_names = ["a", "b", "c"]
    pair = open_pair()
    assert pair.train.groups is None and pair.class_names == ["a", "b", "c"]


def test_the_digest_changes_with_what_is_judged(splits):
    """With a label, a name, a group, a split's name, the sides and the share set apart; not by opening it again."""
    train, test = splits["train"], splits["test"]

    def digest(**changes):
        splits["train"] = small.Named(train.images, changes.get("labels", train.given), changes.get("name", "train"))
        splits["train"].grouped = changes.get("groups")
        splits["train"].names = lambda: [f"train/{i + changes.get('first', 0)}.png" for i in range(60)]
        where = changes.get("where", "/here")
        splits["train"].origin = lambda: sources.Origin("files", [f"{where}/{i}" for i in range(60)])
        splits["test"] = changes.get("test", test)
        return open_pair(shared_groups=True).digest

    other = np.array(train.given)
    other[[0, 1]] = other[[1, 0]]
    unnamed = [ArraySource(test.images, test.given, name) for name in ("a", "b")]
    fewer = ArraySource(test.images[:27], test.given[:27], "a")
    found = [
        digest(),
        digest(labels=other),
        digest(name="elsewhere"),
        digest(first=1),
        digest(groups=np.arange(60) // 6),
        digest(groups=np.arange(60) // 5),
        *(digest(test=source) for source in (*unnamed, fewer)),
    ]
    assert len(set(found)) == len(found) and digest() == found[0]
    assert digest(where="/moved") == found[0]  # names, not where a folder lies
    apart = [labelled.open_pair(Labelled(test_split=None), Data(), seed=seed).digest for seed in (0, 1, 0)]
    assert apart[0] == apart[2] != apart[1]
    pair = open_pair()
    assert pair._replace(train=pair.test, test=pair.train).digest != pair.digest


def test_the_digest_of_a_data_set_is_of_places(digits_dir):
    """The same images of digits under the same name, and others of equal labels under it."""
    run = Data(dataset="digits", data_dir=digits_dir)
    first, again = (labelled.open_pair(Labelled(train_split="train[:900]"), run, seed=0) for _ in range(2))
    assert first.digest == again.digest
    moved = dataclasses.replace(first.train.source, places=(range(1, 901),))
    assert first._replace(train=first.train._replace(source=moved)).digest != first.digest


@pytest.mark.parametrize(
    ("test_split", "message"),
    [("test[5:5]", "split 'test.5:5.' of 'digits' holds no images"), ("val", "holds no images")],
)
def test_a_split_without_images_is_refused(digits_dir, test_split, message):
    """On one line, with the splits that there are and how to do without."""
    hint = "--config.data.test_split=None sets a share of 'train' apart$"
    with pytest.raises(ConfigError, match=f"{message}.*train .1500 images., test .297 images.; .*{hint}"):
        labelled.open_pair(Labelled(test_split=test_split), Data(dataset="digits", data_dir=digits_dir), seed=0)


def test_a_test_split_like_no_train_split_is_refused(splits):
    """No images, or those of another kind than the encoder's, on the test side alone; one line each."""
    test = splits["test"]
    splits["test"] = ArraySource(test.images[:0], test.given[:0], name="none")
    with pytest.raises(ConfigError, match="^none holds no images; --config.data.test_split names another, "):
        open_pair()
    splits["test"] = ArraySource(np.repeat(test.images, 3, axis=3), test.given, name="colour")
    with pytest.raises(
        ConfigError, match="^colour holds uint8 images of 3 channels, and the encoder takes uint8 of 1.*$"
    ):
        open_pair()
    splits["test"] = ArraySource(test.images.astype(np.float32), test.given, name="floats")
    with pytest.raises(
        ConfigError, match="^floats holds float32 images of 1 channels, and the encoder takes uint8 .*$"
    ):
        open_pair()
    splits["train"] = ArraySource(splits["train"].images, np.zeros(60, int), name="one")
    with pytest.raises(ConfigError, match="^one holds one class alone; a classifier needs two or more$"):
        open_pair(test_split=None)
