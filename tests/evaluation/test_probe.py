"""The probe as a command, with encoders that need no net: which row is whose, and when a result is read back."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.config import Config, ConfigError, Data, Eval, Probe, Views
from moco_jax.data import opening
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import linear, probe
from moco_jax.state import Network
from tests import tiny

SETTINGS = Probe(labels_per_class=4, draws=3, batch_size=16)
CONFIG = Config(data=Data(dataset="mine"), views=Views(size=4), eval=Eval(resize=6))


def source(count, seed, name):
    """Gray images (6, 6), framed, of one value 3 * r + label: no line through the raw values tells the label."""
    labels = np.arange(count) % 3
    values = (3 * np.random.default_rng(seed).integers(0, 80, count) + labels).astype(np.uint8)
    images = np.full((count, 6, 6, 1), 200, np.uint8)
    images[:, 1:5, 1:5] = values[:, None, None, None]
    return ArraySource(images, labels, name=name)


def encoder(function, fill, calls):
    """A frozen encoder of one parameter `fill`, with features `function(values of the images (n,))`."""

    def features(x):
        calls.append(len(x))
        out = function(x[:, 0, 0, 0]).astype(np.float32)
        return {"backbone": out, "head": np.zeros((len(x), 2), np.float32)}

    network = Network({"w": jnp.full(3, fill)}, {})
    return frozen.FrozenEncoder(features, network, "fake", tiny.preprocessing(4, 1, resize=6), None)


class Bench:
    """What `probe.run` finds: a run's encoders, a step, splits; `calls` counts batches that were encoded."""

    def __init__(self, monkeypatch):
        self.calls, self.opened = [], []
        self.trained = encoder(lambda v: np.eye(3)[v % 3], 1.0, self.calls)
        self.untrained = encoder(lambda v: np.ones((len(v), 3)), 0.0, self.calls)
        self.config, self.step, self.source, self.on_disk = CONFIG, 8, "", None
        self.splits = {"train": source(60, 0, "mine/train"), "test": source(30, 1, "mine/test")}
        monkeypatch.setattr(opening, "open_split", self.open_split)
        monkeypatch.setattr(frozen, "load", self.load)
        monkeypatch.setattr(frozen, "stored_digest", self.stored_digest)

    def open_split(self, data, split, *, name=None, data_dir=None):
        self.opened.append((name or data.dataset, split, data_dir or data.data_dir))
        return self.splits[split]

    def load(self, checkpoint):
        how = tiny.preprocessing(4, 1, resize=self.config.eval.resize or 4)
        both = [encoder._replace(preprocessing=how) for encoder in (self.trained, self.untrained)]
        return frozen.Loaded(*both, self.config, self.step, self.source, 20)

    def stored_digest(self, checkpoint, step, like):
        assert step == self.step
        return self.on_disk or frozen.digest(self.trained.network)


@pytest.fixture
def bench(monkeypatch):
    """A run that was trained to tell the labels, evaluated on 60 and 30 images."""
    return Bench(monkeypatch)


def rows_of(workdir):
    return json.loads((workdir / "linear.json").read_text())["rows"]


def test_each_row_shows_its_own_encoder(bench, tmp_path):
    """One-hot labels reach 100 %, constants chance, raw values in between; the trained row is compared, and last."""
    text = probe.run(SETTINGS, "runs/a", tmp_path)
    rows = rows_of(tmp_path)
    names = ["raw pixels", "untrained encoder", "trained encoder"]
    assert list(rows) == list(probe.ROWS) == names
    assert [line[:20].strip() for line in text.splitlines()[1:4]] == names
    assert rows["trained encoder"]["few"] == [1.0] * 3 and rows["trained encoder"]["all"] == 1.0
    assert rows["untrained encoder"]["few"] == pytest.approx([1 / 3] * 3)
    assert rows["untrained encoder"]["all"] == pytest.approx(1 / 3)
    raw = rows["raw pixels"]
    assert raw["all"] < 0.8 and raw["few"] != rows["untrained encoder"]["few"]
    assert rows["untrained encoder"]["difference"]["mean"] == pytest.approx(2 / 3)
    assert rows["trained encoder"]["difference"] is None


def test_raw_pixels_are_the_stored_values(bench, tmp_path):
    """Where the values themselves tell the label, pixels need no encoder."""
    for split in bench.splits.values():
        split.images = (split.images % 3).astype(np.uint8) ** 7  # 0, 1, 128
    probe.run(SETTINGS, "runs/a", tmp_path)
    assert rows_of(tmp_path)["raw pixels"]["all"] == 1.0


@pytest.mark.parametrize("which", ["train", "test"])
def test_images_of_mixed_sizes_have_no_row_of_raw_pixels(bench, tmp_path, which):
    """The encoders' rows stay, and the table says why the other is missing, also when it is read back."""
    split = bench.splits[which]
    split.images = [*split.images[:-1], np.full((7, 6, 1), 200, np.uint8)]
    for _ in range(2):
        text = probe.run(SETTINGS, "runs/a", tmp_path)
        assert "(no row of raw pixels: the images differ in size)" in text
    assert list(rows_of(tmp_path)) == ["untrained encoder", "trained encoder"]


def test_draws_labels_and_penalty_are_the_probes(bench, tmp_path):
    """The row of raw pixels, made here from the settings."""
    settings = dataclasses.replace(SETTINGS, labels_per_class=3, draws=4, seed=5, penalty=0.5)
    probe.run(settings, "runs/a", tmp_path)
    train, test = bench.splits["train"], bench.splits["test"]
    pixels = tuple(s.images.reshape(len(s), -1).astype(np.float32) for s in (train, test))
    labels = (train.labels(), test.labels())
    drawn = linear.draw_few(labels[0], 3, 4, 5)
    wanted = [linear.accuracy(pixels, labels, rows, penalty=0.5) for rows in drawn]
    assert rows_of(tmp_path)["raw pixels"]["few"] == wanted


def test_without_resize_the_whole_image_is_the_view(bench, tmp_path):
    """eval.resize None: the shorter side to views.size, here the size that the images have, so no corner is lost."""
    bench.config = dataclasses.replace(CONFIG, eval=Eval(resize=None))
    for split in bench.splits.values():
        split.images = split.images[:, 1:5, 1:5]
        split.images[:, 1:] = split.images[:, :, 1:] = 200
    probe.run(SETTINGS, "runs/a", tmp_path)
    assert rows_of(tmp_path)["trained encoder"]["all"] == 1.0


def test_an_equal_question_is_read_back(bench, tmp_path):
    """The second call encodes nothing, writes nothing and shows the same; so does a number edited in the file."""
    text = probe.run(SETTINGS, "runs/a", tmp_path)
    assert sum(bench.calls) == 2 * (64 + 32)  # two encoders, tails padded to whole batches of 16
    bench.calls.clear()
    stamp = (tmp_path / "linear.json").stat().st_mtime_ns
    assert probe.run(SETTINGS, "runs/a", tmp_path) == text
    assert not bench.calls and (tmp_path / "linear.json").stat().st_mtime_ns == stamp
    stored = json.loads((tmp_path / "linear.json").read_text())
    stored["rows"]["raw pixels"]["all"] = 0.123
    (tmp_path / "linear.json").write_text(json.dumps(stored))
    assert "12.3%" in probe.run(SETTINGS, "runs/a", tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "other"},
        {"data_dir": "there"},
        {"train_split": "test"},
        {"test_split": "train"},
        {"labels_per_class": 5},
        {"draws": 2},
        {"penalty": 0.5},
        {"seed": 1},
    ],
)
def test_another_question_is_computed(bench, tmp_path, changes):
    """Each setting that changes a number; the new result takes the place of the old."""
    probe.run(SETTINGS, "runs/a", tmp_path)
    bench.calls.clear()
    other = dataclasses.replace(SETTINGS, **changes)
    probe.run(other, "runs/a", tmp_path)
    assert bench.calls
    bench.calls.clear()
    probe.run(other, "runs/a", tmp_path)
    assert not bench.calls


def test_another_encoder_or_step_is_computed(bench, tmp_path):
    """A run that went on has other numbers; so has another run of as many steps."""
    probe.run(SETTINGS, "runs/a", tmp_path)
    for name, value in (("step", 12), ("trained", encoder(lambda v: np.ones((len(v), 3)), 2.0, bench.calls))):
        bench.calls.clear()
        setattr(bench, name, value)
        probe.run(SETTINGS, "runs/a", tmp_path)
        assert bench.calls, name
    assert rows_of(tmp_path)["trained encoder"]["all"] == pytest.approx(1 / 3)


def test_data_are_the_probes_or_the_runs(bench, tmp_path):
    """Named data first, else what the run was trained on."""
    probe.run(SETTINGS, "runs/a", tmp_path)
    assert set(bench.opened) == {("mine", "train", None), ("mine", "test", None)}
    bench.opened.clear()
    probe.run(dataclasses.replace(SETTINGS, dataset="other", data_dir="there"), "runs/a", tmp_path)
    assert set(bench.opened) == {("other", "train", "there"), ("other", "test", "there")}


def test_a_result_of_an_encoder_that_changed_is_not_kept(bench, tmp_path):
    """What the checkpoint holds afterwards is not what was evaluated."""
    bench.on_disk = "another digest"
    with pytest.raises(RuntimeError, match="the encoder changed while it was evaluated"):
        probe.run(SETTINGS, "runs/a", tmp_path)
    assert not (tmp_path / "linear.json").exists()


def test_what_has_no_labels_is_refused(bench, tmp_path):
    """A run on images of one's own without named data, and data without labels in either split."""
    bench.source = "own images"
    with pytest.raises(ConfigError, match="own, 'own images': name labelled data"):
        probe.run(SETTINGS, "runs/a", tmp_path)
    bench.source = ""
    for split in ("train", "test"):
        there = bench.splits[split]
        bench.splits[split] = ArraySource(there.images, name=there.name)
        with pytest.raises(ConfigError, match="has no labels"):
            probe.run(SETTINGS, "runs/a", tmp_path)
        bench.splits[split] = there
