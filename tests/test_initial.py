"""A run that starts from weights: which are taken, by which rules, and that nothing else of the run is another."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from moco_jax import assembly, initial, parallel, pretrain, run_folder
from moco_jax.checkpoints import recognise, weights
from moco_jax.checkpoints.store import Store
from moco_jax.config import ConfigError, Data, Eval, Model, Train, Views
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation.encoder import Values
from moco_jax.models.encoder import from_config
from tests import tiny
from tests.evaluation import files

GRAY = Values(1, "uint8", 0.0, 255.0)


def run_config(init_from=None, **train):
    """A run of two epochs of four steps."""
    return tiny.config(
        seed=5,
        data=Data(mean=(0.5,) * 3, std=(0.25,) * 3),
        views=Views(recipe="moco_v2", size=tiny.SIZE),
        train=Train(epochs=2, init_from=init_from, **train),
        eval=Eval(every_epochs=0),
    )


def objects(c):
    return {
        "source": ArraySource(tiny.images(), name="tiny"),
        "encoder": tiny.small_encoder(c, 3),
        "recipe": tiny.LIGHT,
    }


def parts_of(c):
    return assembly.assemble(c, **objects(c))


def train(c, workdir):
    return pretrain.train(c, workdir, **objects(c))


def newest(workdir):
    """The state of the newest checkpoint."""
    with Store(workdir / "checkpoints", read_only=True) as store:
        return store.tree(store.latest()), store.about(store.latest())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a complete run."""
    folder = tmp_path_factory.mktemp("first") / "run"
    train(run_config(), folder)
    return folder


@pytest.fixture(scope="module")
def second(tmp_path_factory, done):
    """The folder of a complete run that started from the first."""
    folder = tmp_path_factory.mktemp("second") / "run"
    train(run_config(str(done)), folder)
    return folder


def begin(c, workdir):
    parts = parts_of(c)
    return parts, pretrain.begin(parts, workdir, run_folder.check(parts, workdir), given=True)


def test_both_networks_begin_as_the_runs_online_one_and_nothing_else_does(done, tmp_path):
    """Parameters and statistics, in buffers of their own; step, queue and optimizer as without."""
    parts, start = begin(run_config(str(done)), tmp_path / "new")
    state = initial.born(parts.mechanism.init, start)
    tree, _ = newest(done)
    for network in (state.online, state.target):
        held = {"params": parallel.host(network.params), "batch_stats": parallel.host(network.batch_stats)}
        assert initial.digest(held) == initial.digest({k: tree["online"][k] for k in held}) == start.about["digest"]
    ours, theirs = (jax.tree.leaves(n) for n in (state.online, state.target))
    places = [s.data.unsafe_buffer_pointer() for leaf in ours + theirs for s in leaf.addressable_shards]
    assert len(set(places)) == len(places)
    fresh = parallel.born(parts.mechanism.init)
    for name in ("step", "optimizer", "memory"):
        assert tiny.distance(parallel.host(getattr(state, name)), parallel.host(getattr(fresh, name)))[0] == 0
    assert not (tmp_path / "new").exists()


def test_the_state_is_the_same_on_one_device_and_on_eight(done, tmp_path):
    """Bit for bit."""
    parts, start = begin(run_config(str(done)), tmp_path)
    one, all_of_them = (
        parallel.host(parallel.born(initial.into(parts.mechanism.init), over, start.trees))
        for over in (jax.devices()[:1], None)
    )
    assert tiny.distance(one, all_of_them) == (0.0, "")


def test_a_run_records_what_it_started_from_and_says_it(done, second):
    """In every checkpoint and in config.json: path, layout and digest; on the first line of the log's event."""
    _, about = newest(second)
    tree, _ = newest(done)
    wanted = {"path": str(done), "layout": "a run's folder, step 8", "step": 8}
    assert about["init"] == json.loads((second / "config.json").read_text())["init"]
    assert {k: about["init"][k] for k in wanted} == wanted
    assert about["init"]["digest"] == initial.digest({k: tree["online"][k] for k in ("params", "batch_stats")})
    assert about["config"]["train"]["init_from"] == str(done)
    assert about["init"]["origin"] == {"text": "run of moco, step 8 of 8", "license_note": ""} and "origin" not in about
    assert json.loads((second / "log.jsonl").read_text().splitlines()[0])["init"] == about["init"]
    assert "init" not in newest(done)[1]


def test_weights_that_moved_or_went_do_not_stop_a_run(done, second, tmp_path):
    """The checkpoint decides; the same weights elsewhere are the same ones, and what cannot be compared is said."""
    moved = tmp_path / "moved"
    shutil.copytree(done, moved)
    _, start = begin(run_config(str(moved)), second)
    assert start.trees is None and start.lines == [] and start.about["path"] == str(done)
    tree, about = newest(done)
    with Store(moved / "checkpoints", keep=2) as store:  # it has trained on: what it was then is compared
        store.save(9, jax.tree.map(lambda leaf: leaf + 1, tree), about)
    assert begin(run_config(str(moved)), second)[1].lines == []
    _, start = begin(run_config(str(tmp_path / "gone")), second)
    (said,) = start.lines
    assert (
        "is not compared with what the run began with, which the checkpoint holds: " in said and "there is no" in said
    )
    assert train(run_config(str(tmp_path / "gone")), second).was_complete
    assert newest(second)[1]["init"]["path"] == str(done)


def test_weights_without_numbers_start_no_run(done, tmp_path):
    """Said of the weights, not of the first step's images."""
    moved = tmp_path / "moved"
    shutil.copytree(done, moved)
    tree, about = newest(done)
    with Store(moved / "checkpoints", keep=1) as store:
        store.save(9, jax.tree.map(lambda leaf: leaf * np.nan if leaf.dtype.kind == "f" else leaf, tree), about)
    with pytest.raises(ConfigError, match=r"init_from=.*moved: params/.* holds numbers that are not finite"):
        begin(run_config(str(moved)), tmp_path / "new")


def test_the_digest_is_of_names_and_types_too():
    """Two leaves with each other's values, or in another precision, are other weights."""
    a, b = np.zeros(2, np.float32), np.ones(2, np.float32)
    digests = {initial.digest(t) for t in ({"p": {"a": a, "b": b}}, {"p": {"a": b, "b": a}}, {"p": {"b": a, "c": b}})}
    assert len(digests) == 3
    assert initial.digest({"p": np.zeros(2, np.float32)}) != initial.digest({"p": np.zeros(1, np.float64)})


def test_other_weights_are_another_run(done, second):
    """Also none, and weights for a run that began without."""
    with pytest.raises(ConfigError, match=f"{second} holds a run that began from other weights than those of {second}"):
        begin(run_config(str(second)), second)
    with pytest.raises(ConfigError, match=f"began from {done}, this one begins from random weights"):
        begin(run_config(), second)
    with pytest.raises(ConfigError, match=f"began from random weights, this one begins from {done}"):
        begin(run_config(str(done)), done)


def test_a_run_without_a_checkpoint_needs_its_weights_and_the_same_ones(done, second, tmp_path):
    """It was stopped before it had saved any."""
    (tmp_path / "config.json").write_text((second / "config.json").read_text())
    assert begin(run_config(str(done)), tmp_path)[1].trees is not None
    with pytest.raises(ConfigError, match=r"delete .* to begin anew\) holds a run that began from other weights"):
        begin(run_config(str(second)), tmp_path)
    with pytest.raises(ConfigError, match="^train.init_from=.*/gone: there is no .*/gone: give a run's folder, a file"):
        begin(run_config(str(tmp_path / "gone")), tmp_path)


def test_a_run_that_trained_on_gives_the_weights_that_it_had_then(done, second, tmp_path):
    """As long as it keeps that checkpoint; without, it is said, and its newest weights are not taken instead."""
    moved, fresh = tmp_path / "moved", tmp_path / "fresh"
    shutil.copytree(done, moved)
    tree, about = newest(done)
    with Store(moved / "checkpoints", keep=2) as store:
        store.save(9, jax.tree.map(lambda leaf: leaf + 1, tree), about)
    fresh.mkdir()
    (fresh / "config.json").write_text((second / "config.json").read_text())
    _, start = begin(run_config(str(moved)), fresh)
    assert start.trees is not None and start.about["step"] == 8
    shutil.rmtree(moved / "checkpoints/8")
    with pytest.raises(ConfigError, match="moved holds step 8, from which the run began, no more"):
        begin(run_config(str(moved)), fresh)


def test_bad_weights_are_an_error_before_the_folder_is_touched(tmp_path):
    """Nothing is made."""
    with pytest.raises(ConfigError, match="^train.init_from=.*/gone: there is no .*/gone: .* or a folder of timm"):
        train(run_config(str(tmp_path / "gone")), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_of_ones_own_starts_from_the_same_one_alone(done, tmp_path):
    """By its label."""
    parts = parts_of(run_config(str(done)))
    with pytest.raises(ConfigError, match="holds encoder 'small', and the run has 'resnet_tiny.*one's own"):
        initial.begin(
            parts.config, tiny.tiny_encoder(parts.config), parts.values, stored=None, step=0, where=str(tmp_path)
        )


def test_the_head_starts_anew_on_demand(done, tmp_path):
    """From the seed; the backbone is taken all the same, and a line says both."""
    parts, start = begin(run_config(str(done), init_head=False), tmp_path)
    assert start.lines[0].startswith(f"starting from the backbone of {done} (a run's folder, step 8)")
    assert start.lines[1] == "the projection head starts anew, from the seed (train.init_head=False)"
    state, fresh = (
        parallel.host(s) for s in (initial.born(parts.mechanism.init, start), parallel.born(parts.mechanism.init))
    )
    tree, _ = newest(done)
    for network in (state.online, state.target):
        assert tiny.distance(network.params["head"], fresh.online.params["head"])[0] == 0
        assert tiny.distance(network.params["backbone"], tree["online"]["params"]["backbone"])[0] == 0


def fit(monkeypatch, tmp_path, what, *, model=files.MODEL, channels=1, init_head=True):
    """(trees, lines) of a file that holds `what`, for a run of a ResNet."""
    path = files.put(monkeypatch, tmp_path / "a.pth", what)
    config = dataclasses.replace(run_config(str(path), init_head=init_head), model=model)
    values = GRAY._replace(channels=channels)
    encoder = from_config(model, config.bn, channels=channels, size=tiny.SIZE, dtype=np.dtype("float32"))
    return initial.fitted(initial.read(str(path)), encoder, config, values)


def test_a_file_gives_backbone_statistics_and_head(monkeypatch, tmp_path):
    """As they are in it."""
    trees, lines = fit(monkeypatch, tmp_path, files.found())
    assert initial.digest(trees) == initial.digest(files.tree())
    (line,) = lines
    assert "starting from the backbone and head of" in line and "(MoCo checkpoint, the released code's" in line


def test_a_backbone_without_a_head_starts_it_from_the_seed(monkeypatch, tmp_path):
    """Said in a line; nothing of a head is given."""
    trees, lines = fit(monkeypatch, tmp_path, files.found(head=False))
    assert list(trees["params"]) == ["backbone"] and lines[1].endswith("from the seed (the weights have none)")


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"head": "linear"}, "--config.model.head=mlp,"),
        ({"dim": 16}, "--config.model.dim=8,"),
        ({"head": "linear", "dim": 16}, "--config.model.head=mlp --config.model.dim=8,"),
    ],
)
def test_a_head_that_does_not_fit_names_both_and_the_two_ways_out(monkeypatch, tmp_path, changes, flags):
    """The flags that fit it, or a new head, which then is no error."""
    model = dataclasses.replace(files.MODEL, **changes)
    with pytest.raises(ConfigError) as error:
        fit(monkeypatch, tmp_path, files.found(), model=model)
    said = f"has a projection head mlp of dim 8, and the config has {model.head} of dim {model.dim}; use {flags}"
    assert said in str(error.value) and str(error.value).endswith("--config.train.init_head=False")
    assert "head" not in fit(monkeypatch, tmp_path, files.found(), model=model, init_head=False)[0]["params"]


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        (Model(arch="resnet18", stem="cifar", width=4, dim=8), "--config.model.arch=resnet_tiny"),
        (
            Model(arch="resnet_tiny", stem="imagenet", width=8, dim=8),
            "--config.model.stem=cifar --config.model.width=4",
        ),
    ],
)
def test_another_backbone_is_refused_with_the_flags_that_fit(monkeypatch, tmp_path, model, flags):
    """All of them at once."""
    with pytest.raises(ConfigError, match="holds a backbone of .*, and the config has .*; use ") as error:
        fit(monkeypatch, tmp_path, files.found(), model=model)
    assert str(error.value).endswith(f"use {flags}")


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_first_convolution_of_three_channels_is_carried_over(monkeypatch, tmp_path, channels):
    """timm's rule in numpy; the rest is as it was."""
    pixels = files.GRAY._replace(mean=(0.5,) * 3, std=(0.25,) * 3)
    trees, lines = fit(monkeypatch, tmp_path, files.found(channels=3, pixels=pixels), channels=channels)
    rgb = np.moveaxis(files.tree(channels=3)["params"]["backbone"]["conv1"]["kernel"], 2, 0)  # (3, h, w, out)
    wanted = {
        1: [rgb[0] + rgb[1] + rgb[2]],
        2: [rgb[0] * 1.5, rgb[1] * 1.5],
        3: list(rgb),
        5: [rgb[i] * np.float32(3 / 5) for i in (0, 1, 2, 0, 1)],
    }[channels]
    got = np.moveaxis(trees["params"]["backbone"]["conv1"]["kernel"], 2, 0)
    np.testing.assert_allclose(got, np.stack(wanted), rtol=1e-6)
    told = [line for line in lines if "first convolution" in line]
    assert len(told) == (channels != 3) and all(f"of 3 channels, begins on {channels} as" in line for line in told)
    if channels == 3:
        assert initial.digest(trees) == initial.digest(files.tree(channels=3))


@pytest.mark.parametrize(("have", "need"), [(13, 3), (1, 3), (4, 1)])
def test_other_channels_are_refused(monkeypatch, tmp_path, have, need):
    """There is no rule for them."""
    with pytest.raises(
        ConfigError, match=f"is for images of {have} channels, and the run's have {need}: .* 3 channels"
    ):
        fit(monkeypatch, tmp_path, files.found(channels=have, pixels=None), channels=need)


def test_wider_numbers_are_rounded_and_said(monkeypatch, tmp_path):
    """float64 to the float32 of the run's parameters; float16 is exact, and says nothing."""
    trees, lines = fit(monkeypatch, tmp_path, files.found(dtype=np.float64))
    assert lines[-1] == "the weights are float64: rounded to the dtype of the run's parameters"
    assert {leaf.dtype for leaf in jax.tree.leaves(trees)} == {np.dtype("float32")}
    assert len(fit(monkeypatch, tmp_path, files.found(dtype=np.float16))[1]) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"mean": (0.4,)}, r"images with data.mean (0.4,) (here (0.5,))"),
        ({"std": (0.2,), "range": (0.0, 100.0)}, r"images with data.range (0.0, 100.0) (here (0.0, 255.0)), data.std"),
    ],
)
def test_images_standardised_otherwise_are_a_warning(monkeypatch, tmp_path, changes, said):
    """By the key that differs; one number stands for all channels."""
    path = files.put(monkeypatch, tmp_path / "a.pth", files.found(pixels=files.GRAY._replace(**changes)))
    config = dataclasses.replace(run_config(str(path)), model=files.MODEL, data=Data(mean=(0.5,), std=(0.25,)))
    encoder = from_config(files.MODEL, config.bn, channels=1, size=tiny.SIZE, dtype=np.dtype("float32"))
    start = initial.begin(config, encoder, GRAY, stored=None, step=0, where="w")
    assert len(start.warnings) == (said is not None)
    flags = " ".join(f"--config.data.{name}='{value}'" for name, value in sorted(changes.items()))
    assert said is None or (said in start.warnings[0] and start.warnings[0].endswith(f"unless {flags}"))
    assert said is None or start.warnings[0].startswith(f"{path} was trained on images with")


def test_what_a_file_does_not_say_is_not_claimed_of_it(monkeypatch, tmp_path):
    """What its kind of file usually expects is an assumption, and the warning says so."""
    path = files.put(monkeypatch, tmp_path / "a.pth", files.found(channels=3, pixels=recognise.IMAGENET))
    config = dataclasses.replace(run_config(str(path)), model=files.MODEL)
    encoder = from_config(files.MODEL, config.bn, channels=3, size=tiny.SIZE, dtype=np.dtype("float32"))
    start = initial.begin(config, encoder, GRAY._replace(channels=3), stored=None, step=0, where="w")
    (said,) = start.warnings
    assert said.startswith(
        f"{path} says nothing of its images, and its kind is usually trained on images with data.mean"
    )
    assert "(0.485, 0.456, 0.406) (here (0.5, 0.5, 0.5))" in said


def test_a_mean_of_other_channels_is_no_warning(monkeypatch, tmp_path):
    """Three numbers for color, one for gray: nothing to compare."""
    rgb = files.GRAY._replace(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    path = files.put(monkeypatch, tmp_path / "a.pth", files.found(channels=3, pixels=rgb))
    config = dataclasses.replace(run_config(str(path)), model=files.MODEL, data=Data(mean=(0.5,), std=(0.25,)))
    encoder = from_config(files.MODEL, config.bn, channels=1, size=tiny.SIZE, dtype=np.dtype("float32"))
    assert initial.begin(config, encoder, GRAY, stored=None, step=0, where="w").warnings == []


@pytest.mark.slow
def test_a_run_starts_from_a_file_of_the_released_code(tmp_path):
    """The whole way: PyTorch's file, the config's ResNet, an epoch of steps that move it, a checkpoint that says so."""
    pytest.importorskip("torch")
    from moco_jax.checkpoints import pytorch, torch_names

    model = dataclasses.replace(files.MODEL, dtype="float32")
    named = {f"module.encoder_q.{n}": t for n, t in torch_names.to_torch(files.tree(model, 3)).items()}
    path = tmp_path / "m.pth.tar"
    pytorch.write(path, {"epoch": 3, "arch": "resnet_tiny", "state_dict": named})
    c = dataclasses.replace(run_config(str(path)), model=model)
    source = ArraySource(tiny.images(), name="tiny")
    parts = assembly.assemble(c, source=source)
    start = pretrain.begin(parts, tmp_path / "run", 0)
    state = parallel.host(initial.born(parts.mechanism.init, start))
    wanted = {k: files.tree(model, 3)[k] for k in ("params", "batch_stats")}
    for network in (state.online, state.target):
        assert initial.digest({"params": network.params, "batch_stats": network.batch_stats}) == initial.digest(wanted)
    pretrain.train(c, tmp_path / "run", source=source)
    tree, about = newest(tmp_path / "run")
    assert about["init"]["digest"] == initial.digest(wanted)
    assert tiny.distance(tree["online"]["params"], wanted["params"])[0] > 0
    assert weights.describe(torch_names.to_torch({"params": tree["online"]["params"], "batch_stats": {}})).width == 4
