"""A run's encoder that compiles in a second, and labelled images that it can tell apart, for tests of evaluations."""

import dataclasses

import jax
import numpy as np

from moco_jax.config import BatchNorm, Data, Views
from moco_jax.core.randomness import INIT, key
from moco_jax.data import opening
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import loading
from moco_jax.state import Network
from tests import tiny

CLASSES = 3


class Named(ArraySource):
    """Arrays with names."""

    def names(self):
        return [f"{self.name}/{i}.png" for i in range(len(self))]


def source(count, seed, name, groups=None):
    """Gray images of which the third that is bright tells the label, among noise."""
    labels = np.arange(count) % CLASSES
    images = np.random.default_rng(seed).integers(0, 120, (count, tiny.SIZE, tiny.SIZE, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] //= 4
        image[3 * label : 3 * label + 2] += 120
    return Named(images, labels, name, groups=groups)


class Bench:
    """What an evaluation finds: a run's encoder and its splits; `opened` counts how often a split was."""

    def __init__(self, monkeypatch):
        config = tiny.config(bn=BatchNorm(4), data=Data(dataset="mine", mean=(0.5,), std=(0.5,)))
        self.config = dataclasses.replace(config, views=Views(size=tiny.SIZE))
        self.values = frozen.Values(1, "uint8", 0.0, 255.0)
        self.encoder = tiny.small_encoder(self.config, 1)
        self.how = frozen.preprocessing_of(self.config, self.values)
        self.forward = frozen.forward_of(self.encoder, self.how)
        self.trained = Network(**jax.tree.map(np.asarray, self.encoder.init(key(1, 0, INIT))))
        self.untrained = Network(**jax.tree.map(np.asarray, self.encoder.init(key(0, 0, INIT))))
        self.splits = {"train": source(60, 0, "train"), "test": source(30, 1, "test")}
        self.own_source, self.on_disk, self.opened, self.encoded = "", None, [], 0
        monkeypatch.setattr(opening, "open_split", self.open_split)
        monkeypatch.setattr(loading, "load", self.load)
        monkeypatch.setattr(loading, "stored_digest", lambda *_: self.on_disk or frozen.digest(placed(self.trained)))

    def open_split(self, data, split, *, name=None, data_dir=None, features=(None, None)):
        self.opened.append((name or data.dataset, split, data_dir or data.data_dir))
        return self.splits[split]

    def load(self, checkpoint, **_):
        both = [frozen.freeze(self.forward, placed(n), self.encoder, self.how) for n in (self.trained, self.untrained)]
        both = [e._replace(features=self.counted(e.features)) for e in both]
        return loading.Loaded(*both, self.encoder, self.config, 8, self.own_source, 20, self.values)

    def counted(self, features):
        def count(x):
            self.encoded += 1
            return features(x)

        return count


def placed(network):
    """On this process's devices, as a restore leaves it."""
    from moco_jax import parallel

    return parallel.born(lambda: network)
