"""A file of weights opened for evaluation: its network, what it expects of images, and what it does not know."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import load_encoder, parallel
from moco_jax.checkpoints import recognise
from moco_jax.checkpoints.training import Ours
from moco_jax.checkpoints.weights import Classifier
from moco_jax.config import ConfigError, Data, Views, to_json
from moco_jax.data import opening
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import export, finetune, loading, neighbours, probe, transfer
from moco_jax.protocols import Finetune, Fit, Knn, Labelled, Linear, Transfer
from moco_jax.state import Network
from tests import tiny
from tests.evaluation import files, small

BRIEF = Linear(batch_size=32, epochs=1, learning_rates=(1.0,), schedule="cosine", milestones=())
NAMED = Labelled(dataset="mine")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Untrained networks of a seed without its draws, which take long to compile."""
    monkeypatch.setattr(loading, "_fresh", files.fresh)


@pytest.fixture
def file(monkeypatch, tmp_path):
    """A MoCo checkpoint of gray images."""
    return files.put(monkeypatch, tmp_path / "moco.pth.tar", files.found())


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A backbone without a projection head."""
    return files.put(monkeypatch, tmp_path / "resnet.pth", files.found(head=False))


@pytest.fixture
def images(monkeypatch):
    """Labelled images under every name; what was asked for."""
    splits, asked = {"train": small.source(60, 0, "train"), "test": small.source(30, 1, "test")}, []

    def open_split(data, split, *, name=None, data_dir=None, features=(None, None)):
        asked.append((name, split))
        return splits[split]

    monkeypatch.setattr(opening, "open_split", open_split)
    return asked


def test_features_are_those_of_the_files_network(file):
    """Parameters and statistics as they are in the file, on values mapped to 0..1 and standardised by its record."""
    loaded, tree = loading.load(file), files.tree()
    encoder, raw = loaded.trained, small.source(8, 2, "x").images
    x = jnp.asarray((raw / 255.0 - 0.5) / 0.25, jnp.float32)
    wanted = jax.jit(loaded.encoder.features)(tree["params"], tree["batch_stats"], x)
    got = encoder.features(raw)
    for name in ("backbone", "head"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder(raw, batch_size=8), got["backbone"], rtol=0, atol=1e-6)
    again = jax.jit(encoder.module.apply)(encoder.variables, encoder.preprocess(raw))
    np.testing.assert_allclose(again, got["backbone"], rtol=1e-4, atol=1e-5)


def test_a_file_has_no_step_and_says_what_it_is(file):
    """No run's words: which program's it is, of which file."""
    loaded = loading.load(file)
    assert (loaded.step, loaded.total_steps, loaded.source) == (None, None, "")
    assert loaded.named("FILE") == (
        "resnet_tiny(width=4, stem=cifar)+mlp8 of FILE (MoCo checkpoint, the released code's, MoCo v2 (MLP head))"
    )
    assert not opening.names_images(loaded.config.data)


@pytest.mark.parametrize(("pixels", "whose"), [(recognise.IMAGENET, "ImageNet"), (recognise.CIFAR, "CIFAR-10")])
def test_pixels_that_are_assumed_are_said(monkeypatch, tmp_path, pixels, whose):
    """Wherever the file is named, as nothing in it tells; what a folder or the caller says is no assumption."""
    file = files.put(monkeypatch, tmp_path / "a.pth", files.found(channels=3, pixels=pixels))
    assert loading.load(file).where("a.pth").endswith(f", images prepared as {whose}'s, which nothing in it says)")
    how = tiny.preprocessing(tiny.SIZE, 3)
    assert "prepared" not in loading.load(file, preprocessing=how).origin
    files.put(monkeypatch, file, files.found(channels=3, pixels=pixels._replace(size=32)))
    assert "prepared" not in loading.load(file).origin


def test_untrained_is_the_same_network_from_seed_0(file):
    """There is nothing else that it could be."""
    loaded = loading.load(file)
    assert frozen.digest(loaded.untrained.network) == frozen.digest(files.fresh(loaded.encoder, 0))


def test_the_digest_on_disk_is_of_the_files_network(file, monkeypatch):
    """Read anew; another file under its name is another network, and one that has gone is none."""
    loaded = loading.load(file)
    like = loaded.trained.network
    assert loading.stored_digest(file, None, like) == frozen.digest(like)
    files.put(monkeypatch, file, files.found(seed=4))
    assert loading.stored_digest(file, None, like) != frozen.digest(like)
    file.unlink()
    assert loading.stored_digest(file, None, like) is None


def test_float64_is_computed_in_the_dtype_of_the_config_and_said(monkeypatch, tmp_path):
    """float32 on CPU."""
    loaded = loading.load(files.put(monkeypatch, tmp_path / "a.pth", files.found(dtype=np.float64)))
    assert loaded.trained.network.params["backbone"]["conv1"]["kernel"].dtype == np.float32
    assert "float64 numbers in the precision of model.dtype" in loaded.origin


def test_how_a_file_prepares_images_is_how_they_are_judged(monkeypatch, tmp_path):
    """The side of the view and the side before the crop, each in its place."""
    file = files.put(monkeypatch, tmp_path / "a.pth", files.found(pixels=files.GRAY._replace(size=10, resize=13)))
    loaded = loading.load(file)
    how = loaded.trained.preprocessing
    assert (how.size, how.resize) == (10, 13) == (loaded.config.views.size, loaded.config.eval.resize)


def test_images_of_three_channels_are_read_as_rgb(monkeypatch, tmp_path):
    """As the loaders of such encoders read them; others as stored."""
    pixels = files.GRAY._replace(mean=(0.5,) * 3, std=(0.5,) * 3)
    file = files.put(monkeypatch, tmp_path / "a.pth", files.found(channels=3, pixels=pixels))
    assert loading.load(file).config.data.channels == 3
    sixteen = files.put(
        monkeypatch, tmp_path / "b.pth", files.found(channels=3, pixels=pixels._replace(dtype="uint16"))
    )
    assert loading.load(sixteen).config.data.channels is None


def test_without_a_record_of_preprocessing_it_has_to_be_given(monkeypatch, tmp_path):
    """No guess about channels that nobody described; what is given has to be of as many."""
    file = files.put(monkeypatch, tmp_path / "a.pth", files.found(channels=5, pixels=None))
    with pytest.raises(ConfigError, match="takes images of 5 channels, .* says of which size.*preprocessing="):
        load_encoder(file)
    how = tiny.preprocessing(tiny.SIZE, 5, dtype="uint16", range=(0.0, 1000.0))
    encoder = load_encoder(file, preprocessing=how)
    assert encoder.preprocessing == how
    assert encoder(np.zeros((2, 9, 9, 5), np.uint16)).shape == (2, 16)
    with pytest.raises(ConfigError, match="preprocessing is of 4 channels, and .* takes images of 5"):
        load_encoder(file, preprocessing=tiny.preprocessing(tiny.SIZE, 4))
    for few in ((0.5, 0.5), (0.5,) * 3):
        with pytest.raises(
            ConfigError, match=rf"preprocessing has mean {re.escape(str(few))}, and images have 5 channels"
        ):
            load_encoder(file, preprocessing=how._replace(mean=few))


def test_a_file_of_our_own_knows_its_run(monkeypatch, tmp_path):
    """Size, range, mean and std of the run that it was converted from, its seed and its images; no step of a folder."""
    config = tiny.config(seed=5, model=files.MODEL, views=Views(size=12), data=Data(mean=(0.1,), std=(0.2,)))
    values = frozen.Values(1, "uint16", 0.0, 4000.0)
    about = {"config": to_json(config), "values": values._asdict(), "objects": {"source": ""}}
    ours = Ours(8, np.zeros(0, np.int32), about)
    file = files.put(monkeypatch, tmp_path / "a.pth.tar", files.found(pixels=None, ours=ours))
    loaded = loading.load(file)
    how = loaded.trained.preprocessing
    assert (how.size, how.dtype, how.range, how.mean, how.std) == (12, "uint16", (0.0, 4000.0), (0.1,), (0.2,))
    other = tiny.preprocessing(10, 1, dtype="uint16", range=(0.0, 9.0))
    assert load_encoder(file, preprocessing=other).preprocessing == other
    assert loaded.resized(size=20, resize=None).trained.preprocessing.resize == 20  # never less than the crop
    assert loaded.config == config and loaded.step is None and "step 8 of a run of moco_jax" in loaded.named(file)
    assert frozen.digest(loaded.untrained.network) == frozen.digest(files.fresh(loaded.encoder, 5))
    other = about | {"config": to_json(dataclasses.replace(config, model=dataclasses.replace(files.MODEL, width=8)))}
    files.put(monkeypatch, file, files.found(pixels=None, ours=ours._replace(about=other)))
    with pytest.raises(
        ConfigError, match="says that it is of Model.*width=8.*, and holds the weights of Model.*width=4"
    ):
        loading.load(file)


def test_objects_that_belong_to_the_other_kind_are_refused(file, folder):
    """An encoder of one's own for a file, and a record of preprocessing for a run."""
    with pytest.raises(ConfigError, match="is a file of weights, whose encoder is known by its tensors"):
        load_encoder(file, encoder=tiny.small_encoder(tiny.config(), 1))
    with pytest.raises(ConfigError, match="is no file of weights; a run says"):
        load_encoder(folder, preprocessing=tiny.preprocessing(8, 3))


RUNS = {
    "knn": lambda data, *where: neighbours.run(Knn(k=(5,), data=data), *where, say=lambda _: None),
    "eval-linear": lambda data, *where: probe.run(dataclasses.replace(BRIEF, data=data), *where),
    "finetune": lambda data, *where: finetune.run(Finetune(fit=Fit(batch_size=32, epochs=1), data=data), *where),
    "transfer": lambda data, path, workdir: transfer.run(
        Transfer(k=5, finetune=False, labels=(), data=data), [path], workdir, say=lambda _: None
    ),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("knn", "file"),
        ("eval-linear", "bare"),
        ("transfer", "bare"),
        pytest.param("finetune", "bare", marks=pytest.mark.slow),
    ],
)
def test_every_evaluation_takes_a_file(request, images, tmp_path, name, kind):
    """Also one without a projection head; the end says which file, and that it is bit for bit what it was."""
    path = request.getfixturevalue(kind)
    text = RUNS[name](NAMED, path, tmp_path / "out")
    if name != "transfer":
        assert f"{path} ({loading.load(path).origin}), bit for bit as the checkpoint holds it" in text
    assert text.count("step") == 0 and {n for n, _ in images} == {"mine"}


@pytest.mark.parametrize("name", RUNS)
def test_an_evaluation_of_a_file_has_to_name_its_images(file, images, tmp_path, name):
    """One line, before anything is opened or written."""
    with pytest.raises(ConfigError, match="names no images: name labelled data by --config.data.dataset=NAME"):
        RUNS[name](Labelled(), file, tmp_path / "out")
    assert not images and not (tmp_path / "out").exists()


def test_a_file_that_changed_meanwhile_has_no_result(file, images, tmp_path, monkeypatch):
    """It is read anew at the end."""
    real = neighbours.extract

    def extract(*given, **named):
        files.put(monkeypatch, file, files.found(seed=4))
        return real(*given, **named)

    monkeypatch.setattr(neighbours, "extract", extract)
    with pytest.raises(ConfigError, match="the encoder changed while it was evaluated"):
        RUNS["knn"](NAMED, file, tmp_path / "out")
    assert not (tmp_path / "out/result.json").exists()


def test_a_file_that_has_gone_meanwhile_is_said(file, images, tmp_path, monkeypatch):
    """The result stands, as compared in memory."""
    monkeypatch.setattr(loading, "stored_digest", lambda *_: None)
    assert "bit for bit as before, in memory (the file has gone since)" in RUNS["knn"](NAMED, file, tmp_path / "out")


def test_without_a_head_neighbours_are_asked_on_the_backbone_alone(bare, images, tmp_path):
    """The default asks for both: said in a line. The head alone is refused, and so it is for every other command."""
    said = []
    text = neighbours.run(Knn(k=(5,), data=NAMED), bare, tmp_path / "a", say=said.append)
    assert said[0] == "encoder resnet_tiny(width=4, stem=cifar) has no projection head: backbone features alone"
    assert "backbone" in text and "\nhead" not in text
    refused = (
        lambda: neighbours.run(Knn(k=(5,), features=("head",), data=NAMED), bare, tmp_path / "b"),
        lambda: probe.run(dataclasses.replace(BRIEF, feature="head", data=NAMED), bare, tmp_path / "b"),
        lambda: export.export(bare, tmp_path / "b.npz", images="mine", feature="head"),
    )
    for ask in refused:
        with pytest.raises(ConfigError, match=r"feature.*has no projection head; .*=backbone"):
            ask()
    assert not (tmp_path / "b").exists() and not (tmp_path / "b.npz").exists()


def test_features_of_a_file_need_images(file, images, tmp_path):
    """By a flag, as there are none that it was trained on."""
    with pytest.raises(ConfigError, match="names no images: say which to encode, by --images=IMAGES"):
        export.export(file, tmp_path / "a.npz", say=pytest.fail)
    said = []
    found = export.export(file, tmp_path / "a.npz", images="mine", say=said.append)
    assert found["features"].shape == (60, 16) and said == [
        f"features of {loading.load(file).named(file)}",
        "60 images: split train of mine",
    ]


@pytest.mark.parametrize("names", [None, ("2", "0", "1"), ("cat", "dog", "owl")])
def test_the_classifier_of_a_file_is_judged_as_it_is(monkeypatch, images, tmp_path, names):
    """Its own layer on its own features, by number or, where both sides name the same classes, by name."""
    rng = np.random.default_rng(0)
    own = Classifier(rng.normal(size=(3, 16)).astype(np.float32), rng.normal(size=3).astype(np.float32), names)
    file = files.put(monkeypatch, tmp_path / "a.pth.tar", files.found(head=False, classifier=own))
    test = small.source(30, 1, "test")
    predicted = (load_encoder(file)(test.images) @ own.weight.T + own.bias).argmax(1)
    if names == ("2", "0", "1"):
        predicted = np.array([2, 0, 1])[predicted]
    wanted = (predicted == test.labels()).mean()
    text = probe.run(dataclasses.replace(BRIEF, data=NAMED), file, tmp_path / "out")
    assert f"its own classifier: top-1 {wanted:.2%} as it is (30 test images)" in text


def test_a_classifier_of_other_classes_is_not_judged(monkeypatch, images, tmp_path):
    """It says why, in one line."""
    own = Classifier(np.zeros((7, 16), np.float32), np.zeros(7, np.float32), None)
    file = files.put(monkeypatch, tmp_path / "a.pth.tar", files.found(head=False, classifier=own))
    text = probe.run(dataclasses.replace(BRIEF, data=NAMED), file, tmp_path / "out")
    assert "its own classifier is not judged: it knows 7 classes, and the data have 3" in text


@pytest.mark.parametrize("name", ["a.pth.tar", "a.pth", "a.safetensors", "a"])
def test_a_result_goes_beside_a_file_and_into_a_run(tmp_path, name):
    """By the file's name without its ending."""
    (tmp_path / name).write_bytes(b"")
    assert loading.workdir_for(tmp_path / name, "knn") == str(tmp_path / "a_knn")
    assert loading.workdir_for(tmp_path, "knn") == f"{tmp_path}/knn"


def test_a_file_of_the_released_code_is_read_from_disk(tmp_path):
    """The whole way, by PyTorch's own reader; the statistics and the head are there."""
    pytest.importorskip("torch")
    from moco_jax.checkpoints import pytorch, torch_names

    model = dataclasses.replace(files.MODEL, arch="resnet18", stem="imagenet")
    tree = files.tree(model, 3)
    named = {f"module.encoder_q.{n}": t for n, t in torch_names.to_torch(tree).items()}
    pytorch.write(tmp_path / "m.pth.tar", {"epoch": 3, "arch": "resnet18", "state_dict": named})
    loaded = loading.load(tmp_path / "m.pth.tar")
    assert frozen.digest(loaded.trained.network) == frozen.digest(
        Network(**parallel.put_data({k: tree[k] for k in ("params", "batch_stats")}))
    )
    assert loaded.trained.preprocessing.mean == (0.485, 0.456, 0.406) and loaded.has_head
