"""kNN as a command, with encoders that need no net: the numbers, what is written beside them, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import parallel, protocols
from moco_jax.config import Config, ConfigError, Data, Views
from moco_jax.data import opening
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import knn, labelled, loading, neighbours
from moco_jax.evaluation.features import extract
from moco_jax.state import Network
from tests import tiny
from tests.evaluation import small

SETTINGS = protocols.Knn(k=(1, 5, 20), temperature=0.5, batch_size=16, queries=8, bank=25)
CONFIG = Config(data=Data(dataset="mine"), views=Views(size=4))


def source(count, seed, name):
    """Gray images (4, 4) of one value, 3 * r + label, of three classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    values = (3 * rng.integers(0, 80, count) + labels).astype(np.uint8)
    return small.Named(np.broadcast_to(values[:, None, None, None], (count, 4, 4, 1)), labels, name=name)


def blurred(values):
    """Features (n, 3) that tell the label, but not surely."""
    return np.eye(3)[values % 3] + np.random.default_rng(3).normal(size=(256, 3))[values]


def angles(values):
    """Features (n, 2) that tell next to nothing."""
    return np.stack([np.cos(values / 40), np.sin(values / 40)], axis=1)


class Bench:
    """What `neighbours.run` finds: a run's encoder, a step, splits; `calls` counts the images that were encoded."""

    def __init__(self, monkeypatch):
        self.calls, self.step, self.source, self.fill, self.on_disk = [], 8, "", 1.0, None
        self.splits = {"train": source(60, 0, "mine/train"), "test": source(30, 1, "mine/test")}
        monkeypatch.setattr(opening, "open_split", lambda data, split, **named: self.splits[split])
        monkeypatch.setattr(loading, "load", self.load)
        monkeypatch.setattr(loading, "stored_digest", self.stored_digest)

    def features(self, x):
        self.calls.append(len(x))
        values = x[:, 0, 0, 0].astype(int)
        return {"backbone": blurred(values).astype(np.float32), "head": angles(values).astype(np.float32)}

    def load(self, checkpoint):
        network = Network({"w": jnp.full(3, self.fill)}, {})
        it = frozen.FrozenEncoder(self.features, network, "fake", tiny.preprocessing(4, 1), None)
        values = frozen.Values(1, "uint8", 0.0, 255.0)
        return loading.Loaded(it, it, None, CONFIG, self.step, self.source, 20, values)

    def stored_digest(self, checkpoint, step, like):
        assert step == self.step
        return self.on_disk or frozen.digest(like)

    def oracle(self, function, k, temperature):
        """Top-1 by sums of exp(cosine / T), in numpy."""
        bank, queries = (function(s.images[:, 0, 0, 0].astype(int)) for s in self.splits.values())
        unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (bank, queries)]
        similarity = unit[1] @ unit[0].T
        near = np.argsort(-similarity, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(similarity, near, axis=1) / temperature)
        labels = self.splits["train"].labels()[near]
        votes = np.stack([(weights * (labels == c)).sum(1) for c in range(3)], axis=1)
        return float((votes.argmax(1) == self.splits["test"].labels()).mean())


@pytest.fixture
def bench(monkeypatch):
    """An encoder at step 8 of 20, 60 train and 30 test images."""
    return Bench(monkeypatch)


def run(workdir, *, said=None, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return neighbours.run(settings, "runs/a", workdir, say=(said if said is not None else []).append)


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_each_feature_and_k_has_its_own_number(bench, tmp_path):
    """As in numpy, from uneven chunks; the six numbers differ, so that none stands in another's place."""
    shown = run(tmp_path).splitlines()
    wanted = {
        name: {str(k): bench.oracle(function, k, 0.5) for k in (1, 5, 20)}
        for name, function in (("backbone", blurred), ("head", angles))
    }
    assert result(tmp_path)["top1"] == wanted
    assert len({v for row in wanted.values() for v in row.values()}) == 6
    assert shown[0].split() == ["kNN", "top-1", "k=1", "k=5", "k=20"]
    for line, (name, row) in zip(shown[1:3], wanted.items(), strict=True):
        assert line.split() == [name, *(f"{v:.2%}" for v in row.values())]


def test_everything_that_made_a_number_is_beside_it(bench, tmp_path):
    """In the file every setting, encoder, step and counts; in the table T, splits, counts, and that no k was chosen."""
    shown = " ".join(run(tmp_path).split())
    stored = result(tmp_path)
    assert stored["about"] == {
        "settings": json.loads(json.dumps(dataclasses.asdict(SETTINGS))),
        "step": 8,
        "encoder": frozen.digest(bench.load("").trained.network),
        "data": labelled.open_pair(SETTINGS.data, CONFIG.data, seed=0).digest,
    }
    assert (stored["images"], stored["classes"], stored["test"]) == ({"train": 60, "test": 30}, 3, "split test")
    for words in (
        "T 0.5",
        "60 labelled images of train",
        "30 of split test",
        "no k was chosen",
        "step 8 of 20 of runs/a",
    ):
        assert words in shown


def test_memory_is_said_before_the_images_are_encoded(bench, tmp_path, monkeypatch):
    """One batch is encoded, for the widths; then a line for each feature, with the formula's number."""
    heard = []
    neighbours.run(SETTINGS, "runs/a", tmp_path, say=lambda line: heard.append((list(bench.calls), line)))
    ((calls, lines),) = heard
    assert calls == [16]
    for line, name, width in zip(lines.splitlines(), ("backbone", "head"), (3, 2), strict=True):
        size = knn.memory(width=width, classes=3, k=20, rows=8, columns=20) / 2**20
        head = f"kNN on {name} features: 30 queries, a bank of 60 x {width} in chunks of 20"
        assert line == f"{head}, predicted device memory {size:,.1f} MiB"


def test_an_equal_question_is_read_back(bench, tmp_path):
    """The second call encodes nothing, says nothing and shows the same; a number edited in the file is shown."""
    shown, said = run(tmp_path), []
    bench.calls.clear()
    assert run(tmp_path, said=said) == shown
    assert not bench.calls and not said
    stored = result(tmp_path)
    stored["top1"]["head"]["5"] = 0.1234
    (tmp_path / "result.json").write_text(json.dumps(stored))
    assert "12.34%" in run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": (1, 5)}, r"k \[1, 5, 20\] -> \[1, 5\];"),
        ({"temperature": 0.1}, "temperature 0.5 -> 0.1;"),
        ({"features": ("head",)}, "features .* -> .'head'.;"),
        ({"data": protocols.Labelled(test_split=None)}, "other images or labels, data.test_split 'test' -> None;"),
    ],
)
def test_another_question_is_refused(bench, tmp_path, changes, words):
    """By the one rule of all evaluations (`kept.result`): a number that took minutes is never replaced in silence."""
    run(tmp_path)
    before, _ = (tmp_path / "result.json").read_bytes(), bench.calls.clear()
    with pytest.raises(ConfigError, match=f"{tmp_path} holds another evaluation: {words} use another --workdir"):
        run(tmp_path, **changes)
    assert not bench.calls and (tmp_path / "result.json").read_bytes() == before


def test_what_changes_no_number_is_read_back(bench, tmp_path):
    """Threads, and how many images are asked or compared with at once."""
    shown = run(tmp_path)
    bench.calls.clear()
    assert run(tmp_path, queries=4, bank=60, data=protocols.Labelled(workers=1)) == shown and not bench.calls


@pytest.mark.parametrize(("name", "value", "words"), [("step", 12, "step 8 -> 12;"), ("fill", 2.0, "another encoder;")])
def test_another_encoder_or_step_is_refused(bench, tmp_path, name, value, words):
    """A run that went on has other numbers; so has another run of as many steps."""
    run(tmp_path)
    setattr(bench, name, value)
    with pytest.raises(ConfigError, match=f"holds another evaluation: {words}"):
        run(tmp_path)


def test_other_images_of_the_same_name_are_refused(bench, tmp_path):
    """One label changed."""
    run(tmp_path)
    labels = bench.splits["train"].labels().copy()
    labels[0] = (labels[0] + 1) % 3
    bench.splits["train"] = small.Named(bench.splits["train"].images, labels, name="mine/train")
    with pytest.raises(ConfigError, match="holds another evaluation: other images or labels;"):
        run(tmp_path)


def test_a_result_of_another_version_is_not_read(bench, tmp_path):
    """Its keys may be others."""
    run(tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(stored | {"format": 0}))
    with pytest.raises(ConfigError, match="was written in another form, by another version"):
        run(tmp_path)


def test_what_was_compared_is_said(bench, tmp_path):
    """A run's own encoder also with its checkpoint; one that a user loads in memory alone."""
    assert "bit for bit as the checkpoint holds it;" in run(tmp_path / "own")
    bench.on_disk = "another digest"
    text = neighbours.run(SETTINGS, "a", tmp_path / "loaded", load=bench.load, say=lambda _: None)
    assert "bit for bit as before, in memory;" in text and "checkpoint" not in text


def test_a_result_of_an_encoder_that_changed_is_not_kept(bench, tmp_path):
    """What the checkpoint holds afterwards is not what was evaluated."""
    bench.on_disk = "another digest"
    with pytest.raises(ConfigError, match="the encoder changed while it was evaluated"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"k": (20, 61)},
            "k 61 neighbours, but the bank, mine/train, holds 60 images; use that many or fewer, such as "
            "--config.k='(20,)'",
        ),
        ({"k": ()}, "k must hold one or more different numbers above 0, not"),
        ({"k": (0, 5)}, "k must hold one or more different numbers above 0, not"),
        ({"k": (5, 5)}, "k must hold one or more different numbers above 0, not"),
        ({"temperature": 0.0}, "temperature must be 1e-37 or more, not 0.0"),
        ({"temperature": -0.1}, "temperature must be 1e-37 or more, not -0.1"),
        ({"temperature": float("inf")}, "temperature must be 1e-37 or more, not inf"),
        ({"temperature": float("nan")}, "temperature must be 1e-37 or more, not nan"),
        ({"features": ()}, "features must name one or both of backbone, head, not"),
        ({"features": ("head", "head")}, "features must name one or both of backbone, head, not"),
        ({"features": ("pool",)}, "features 'pool' is unknown"),
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"queries": 0}, "queries must be 1 or more, not 0"),
        ({"bank": 0}, "bank must be 1 or more, not 0"),
    ],
)
def test_what_cannot_be_is_refused_before_encoding(bench, tmp_path, changes, message):
    """One line, nothing encoded, nothing written."""
    with pytest.raises(ConfigError) as error:
        run(tmp_path, **changes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not bench.calls and not list(tmp_path.iterdir())


def test_the_whole_bank_may_vote(bench, tmp_path):
    """k is refused above the bank, not at it; at the least temperature the nearest decides alone."""
    run(tmp_path, k=(1, 60), temperature=knn.TINY)
    top1 = result(tmp_path)["top1"]["backbone"]
    assert top1["60"] == top1["1"] == pytest.approx(bench.oracle(blurred, 1, 1.0))


def test_device_count_does_not_matter(float64, monkeypatch):
    """Features of 21 images in batches of 8 on one device and on eight agree to 1e-10 in float64, and so do kNN's."""
    config = tiny.double(tiny.config())
    encoder = tiny.small_encoder(config, 3)
    how = tiny.preprocessing(tiny.SIZE, 3, computed="float64")
    images, every, found = small.Named(tiny.images()[:21]), jax.local_devices(), []
    assert len(every) == 8
    for count in (1, 8):
        monkeypatch.setattr(jax, "local_devices", lambda *_, count=count: every[:count])
        monkeypatch.setattr(jax, "local_device_count", lambda *_, count=count: count)
        network = parallel.born(lambda: Network(**encoder.init(jax.random.key(0))), every[:count])
        it = frozen.freeze(frozen.forward_of(encoder, how), network, encoder, how)
        found.append(extract(it, images, batch_size=8, workers=1))
    one, eight = found
    for name in ("backbone", "head"):
        assert one[name].dtype == np.float64 and len(one[name]) == len(eight[name]) == 21
        assert np.abs(one[name] - eight[name]).max() < 1e-10 * np.abs(one[name]).max()  # measured: equal
        a, b = (knn.nearest(z[name], z[name], k=5, rows=4, columns=6) for z in found)
        np.testing.assert_array_equal(a.place, b.place)
        np.testing.assert_allclose(a.similarity, b.similarity, rtol=1e-10)
