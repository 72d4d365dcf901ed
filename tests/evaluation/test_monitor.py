"""The kNN monitor: which network, which features, which images, and a share counted by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import parallel
from moco_jax.config import Config, ConfigError, Data, Eval, Model, Views
from moco_jax.data import opening, pixels
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation.encoder import Values
from moco_jax.evaluation.monitor import knn_monitor
from moco_jax.models.encoder import Encoder
from moco_jax.state import Network, State

BANK = [2, 0, 1, 3, 0]  # labels; an image's number is what its centre holds
QUERIES = [0, 0, 1, 1, 2, 2, 2]
VALUES = Values(1, "uint8", 0.0, 255.0)


def pictures(first, count, channels=1, dtype=np.uint8):
    """Images (8, 8) whose centre holds first, first + 1, ..., in a frame that no view may see."""
    out = np.full((count, 8, 8, channels), 200, dtype)
    out[:, 2:6, 2:6] = np.arange(first, first + count)[:, None, None, None]
    return out


def config(**changes):
    """Views of the centre: 8 pixels, and 4 of them."""
    section = Eval(bank_split="bank", split="queries", k=1, temperature=0.1, resize=8, batch_size=4)
    return Config(
        data=Data(dataset="mine", data_dir="here"),
        views=Views(size=4),
        model=Model(dtype="float32"),
        eval=dataclasses.replace(section, **changes),
    )


def features(params, batch_stats, x):
    """Rows of the network's own tables, looked up by the number in an image."""
    number = jnp.round((x[:, 0, 0, 0] * 0.5 + 0.5) * 255).astype(jnp.int32)
    return {name: jnp.take(params[name], number, axis=0, mode="clip") for name in ("backbone", "head")}


ENCODER = Encoder(lambda key: {}, lambda *_: None, features, "tables")


def table(bank, queries):
    """One of four directions for each of the 12 images: (12, 4)."""
    return np.eye(4, dtype=np.float32)[bank + queries]


# By backbone 5 of the 7 are right: image 5 and 6 are taken for classes 0 and 1.
# By head 6 are: image 0 is taken for class 3, which no query has. Bank and queries of different features give 3 and 1.
SEEING = {"backbone": table(BANK, [0, 0, 1, 1, 2, 0, 1]), "head": table([2, 1, 0, 3, 1], [3, 1, 0, 0, 2, 2, 2])}
BLIND = {name: np.ones((12, 4), np.float32) for name in SEEING}  # all alike: the first in the bank wins, class 2


def state(online, target):
    """A state on all devices with these tables."""

    def network(tables):
        return Network({name: jnp.asarray(rows) for name, rows in tables.items()}, {})

    return parallel.born(lambda: State(jnp.asarray(0), network(online), network(target), (), ()))


@pytest.fixture
def opened(monkeypatch):
    """The splits that can be opened, by name, to be replaced by a test; "calls" holds what was asked for."""
    splits = {
        "bank": ArraySource(pictures(0, 5), BANK, name="mine/bank"),
        "queries": ArraySource(pictures(5, 7), QUERIES, name="mine/queries"),
        "calls": [],
    }

    def open_split(data, split, *, name=None, data_dir=None, features=(None, None)):
        splits["calls"].append((name or data.dataset, split, data_dir or data.data_dir, data.channels, *features))
        return splits[split]

    monkeypatch.setattr(opening, "open_split", open_split)
    return splits


def test_the_share_is_counted_for_the_online_network(opened):
    """5 of 7 by the online tables; the target's say 3 of 7, and then the other way round."""
    evaluate = knn_monitor(config(), ENCODER, VALUES, "")
    assert evaluate(state(SEEING, BLIND)) == {"knn_top1": pytest.approx(5 / 7)}
    assert evaluate(state(BLIND, SEEING)) == {"knn_top1": pytest.approx(3 / 7)}


def test_bank_and_queries_are_compared_by_the_feature_that_the_config_names(opened):
    """Head: 6 of 7; a bank or queries of the other feature would give 3 or 1 of 7."""
    evaluate = knn_monitor(config(feature="head"), ENCODER, VALUES, "")
    assert evaluate(state(SEEING, BLIND))["knn_top1"] == pytest.approx(6 / 7)


def test_neighbours_and_temperature_are_the_configs(opened):
    """All five vote: by weight at T = 0.1, by number at T = 1e6, where class 0 has two in the bank."""
    for temperature, right in ((0.1, 5), (1e6, 2)):
        evaluate = knn_monitor(config(k=5, temperature=temperature), ENCODER, VALUES, "")
        assert evaluate(state(SEEING, BLIND))["knn_top1"] == pytest.approx(right / 7)


def test_without_resize_the_whole_image_is_the_view(opened):
    """eval.resize None: the shorter side to views.size, here the size that the images have, so no corner is lost."""
    for split in (opened["bank"], opened["queries"]):
        split.images = split.images[:, 2:6, 2:6]
        split.images[:, 1:] = split.images[:, :, 1:] = 200
    evaluate = knn_monitor(config(resize=None), ENCODER, VALUES, "")
    assert evaluate(state(SEEING, BLIND))["knn_top1"] == pytest.approx(5 / 7)


def test_images_are_those_of_eval_data_or_of_the_training_data(opened):
    """Bank and queries, from the data set, folder and features that are named, converted as the training images are."""
    knn_monitor(config(), ENCODER, VALUES, "")
    none = (None, None)
    assert opened["calls"] == [("mine", "bank", "here", None, *none), ("mine", "queries", "here", None, *none)]
    opened["calls"].clear()
    named = ("frames/rgb", "kind")
    c = config(data="labelled", data_dir="there", image_feature=named[0], label_feature=named[1])
    c = dataclasses.replace(c, data=dataclasses.replace(c.data, channels=1))
    knn_monitor(c, ENCODER, VALUES, "own images")
    assert opened["calls"] == [("labelled", "bank", "there", 1, *named), ("labelled", "queries", "there", 1, *named)]


def test_a_source_of_ones_own_needs_eval_data(opened):
    """Training on own images must not be judged by data.dataset, which was never trained on."""
    with pytest.raises(ConfigError, match="no labelled images for source 'own images': name a data set as eval.data"):
        knn_monitor(config(), ENCODER, VALUES, "own images")
    assert opened["calls"] == []


@pytest.mark.parametrize("key", ["bank_split", "split"])
def test_a_split_that_is_not_there_is_refused_with_its_key(monkeypatch, key):
    """Whose split it is, and how to do without."""

    def open_split(data, split, **_):
        if split == "gone":
            raise ConfigError("split 'gone' of mine holds no images")
        return ArraySource(pictures(0, 5), BANK)

    monkeypatch.setattr(opening, "open_split", open_split)
    other = f"--config.eval.{key} names another, --config.eval.every_epochs=0 watches none"
    with pytest.raises(ConfigError, match=f"^split 'gone' of mine holds no images; {other}$"):
        knn_monitor(config(**{key: "gone"}), ENCODER, VALUES, "")


@pytest.mark.parametrize("split", ["bank", "queries"])
def test_images_without_labels_are_refused(opened, split):
    """In the bank and among the queries alike."""
    opened[split] = ArraySource(opened[split].images, name=opened[split].name)
    with pytest.raises(ConfigError, match="has no labels for kNN"):
        knn_monitor(config(), ENCODER, VALUES, "")


@pytest.mark.parametrize("split", ["bank", "queries"])
@pytest.mark.parametrize(
    ("channels", "dtype", "message"),
    [(3, np.uint8, "uint8 images of 3 channels"), (1, np.uint16, "uint16 images of 1 channels")],
)
def test_images_of_another_kind_than_the_encoders_are_refused(opened, split, channels, dtype, message):
    """Other channels cannot be encoded, another dtype would be scaled wrongly in silence."""
    there = opened[split]
    opened[split] = ArraySource(pictures(0, len(there), channels, dtype), there.labels(), name=there.name)
    with pytest.raises(ConfigError, match=f"mine/{split} holds {message}, .* uint8 of 1; eval.data must be"):
        knn_monitor(config(), ENCODER, VALUES, "")


def test_more_neighbours_than_the_bank_holds_are_refused_before_training(opened):
    """Five images in the bank, seven to classify: six neighbours are one too many, five are not."""
    knn_monitor(config(k=5), ENCODER, VALUES, "")
    with pytest.raises(ConfigError, match="eval.k 6 neighbours, but mine/bank holds 5 images"):
        knn_monitor(config(k=6), ENCODER, VALUES, "")


class Damaged(ArraySource):
    """Pictures some of which are bad files."""

    bad = ()

    def __getitem__(self, index):
        if index in self.bad:
            raise pixels.Unreadable(f"{index}.png is empty", "is empty")
        return super().__getitem__(index)


def damaged(opened, **bad):
    for split, records in bad.items():
        opened[split] = Damaged(opened[split].images, opened[split].given, name=opened[split].name)
        opened[split].bad = records


def allowing(share, **changes):
    c = config(**changes)
    return dataclasses.replace(c, data=dataclasses.replace(c.data, max_bad_fraction=share))


def test_bad_files_are_left_out_of_neighbours_and_queries_and_said(opened):
    """Without the second query 4 of 6 are right; without image 1 of the bank, the one of class 0, fewer: by hand.

    They are named once, and counted each time.
    """
    damaged(opened, queries=(1,))
    evaluate = knn_monitor(allowing(0.15), ENCODER, VALUES, "")
    first, second = evaluate(state(SEEING, BLIND)), evaluate(state(SEEING, BLIND))
    assert first["knn_top1"] == second["knn_top1"] == pytest.approx(4 / 6)
    said = "kNN goes without 1 of the 7 images of mine/queries, which cannot be read"
    assert first["warning"] == f"{said}: record 1 (is empty)" and second["warning"] == said
    damaged(opened, bank=(0, 1), queries=(1,))  # record 0 too; 2 stays, of class 1, and 4, of class 0
    found = knn_monitor(allowing(0.4), ENCODER, VALUES, "")(state(SEEING, BLIND))
    assert found["knn_top1"] == pytest.approx(np.mean([True, True, True, False, False, False]))
    assert found["warning"].count("kNN goes without") == 2 and "2 of the 5 images of mine/bank" in found["warning"]


def test_more_bad_files_than_the_share_stop_the_monitor_with_the_list(opened):
    """As they stop training."""
    damaged(opened, queries=(1,))
    evaluate = knn_monitor(allowing(0.1), ENCODER, VALUES, "")
    with pytest.raises(ConfigError, match=r"1 of the 7 images of mine/queries cannot be read, .*: record 1 \(is empty"):
        evaluate(state(SEEING, BLIND))


def test_neighbours_are_counted_among_the_good_ones(opened):
    """Four are left of the five that k asks for."""
    damaged(opened, bank=(3,))
    evaluate = knn_monitor(allowing(0.4, k=5), ENCODER, VALUES, "")
    with pytest.raises(ConfigError, match=r"eval.k 5 neighbours, but mine/bank holds 4 images"):
        evaluate(state(SEEING, BLIND))
