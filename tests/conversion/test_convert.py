"""moco-jax convert from start to end: what travels is equal, what fails leaves nothing behind."""

import dataclasses
import json
import os
import pathlib
import sys

import jax
import numpy as np
import pytest

from moco_jax.checkpoints import agreement, moco_state, pytorch, recognise
from moco_jax.checkpoints.store import Store
from moco_jax.config import BatchNorm, ConfigError, Optimizer, Views
from moco_jax.conversion import convert, resuming, source, table, written
from tests.conversion import runs

RELEASED = {"stem": "imagenet"}


@pytest.fixture(autouse=True)
def compared(request, monkeypatch):
    """What was compared; networks are compiled for it in the tests that ask for `really` alone."""
    if "really" in request.fixturenames:
        return None
    heard = []
    monkeypatch.setattr(agreement, "of", lambda *args: heard.append(args) or "agreed")
    return heard


@pytest.fixture
def really():
    """Compare features as users do."""


def quiet(*args, **options):
    """A conversion, and what it said."""
    said = []
    convert.convert(*args, say=said.append, **options)
    return said


def everything(folder):
    """Step, description and state of a folder's newest checkpoint."""
    with Store(folder / "checkpoints", read_only=True) as store:
        step = store.latest()
        return step, store.about(step), store.tree(step)


@pytest.fixture
def run(tmp_path):
    runs.write(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (8, {}),
        (11, {"model": {**RELEASED, "head": "linear"}, "channels": 1}),
        (8, {"model": RELEASED, "channels": 13, "moco": runs.tiny.Moco(symmetric=True)}),
    ],
)
def test_there_and_back_is_equal_to_the_bit(tmp_path, step, changes):
    """A run as the released code's file, or its notebook's, and back: step, state, description, to the last bit."""
    pytest.importorskip("torch")
    runs.write(tmp_path / "run", step=step, **changes)
    out = quiet(tmp_path / "run", tmp_path / "a.pth.tar", "pth.tar")
    said = quiet(tmp_path / "a.pth.tar", tmp_path / "back", "orbax")
    before, after = everything(tmp_path / "run"), everything(tmp_path / "back")
    assert before[:2] == after[:2] and before[0] == step
    assert jax.tree.structure(before[2]) == jax.tree.structure(after[2])
    for a, b in zip(jax.tree.leaves(before[2]), jax.tree.leaves(after[2]), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    assert (tmp_path / "run/config.json").read_text() == (tmp_path / "back/config.json").read_text()
    (one,), (other,) = ([line for line in lines if "are equal bit for bit" in line] for lines in (out, said))
    assert one == other  # the same SHA-256 both ways


def test_what_stands_in_the_file(run, tmp_path):
    """Four keys as main_moco.py writes them, both encoders in order, the optimizer over both, and one key of ours."""
    torch = pytest.importorskip("torch")
    runs.write(tmp_path / "r18", model={"arch": "resnet18", **RELEASED}, step=9)
    quiet(tmp_path / "r18", tmp_path / "a.pth.tar", "pth.tar")
    content = torch.load(tmp_path / "a.pth.tar", weights_only=True)
    assert list(content) == ["epoch", "arch", "state_dict", "optimizer", "moco_jax"]
    assert (content["epoch"], content["arch"], content["moco_jax"]["step"]) == (2, "resnet18", 9)
    names = list(content["state_dict"])
    assert names[:3] == ["module.queue", "module.queue_ptr", "module.encoder_q.conv1.weight"]
    assert content["state_dict"]["module.queue"].shape == (8, 40)
    assert content["state_dict"]["module.queue_ptr"].dtype == torch.int64
    q = [n.removeprefix("module.encoder_q.") for n in names if "encoder_q" in n]
    assert q == [n.removeprefix("module.encoder_k.") for n in names if "encoder_k" in n]
    assert content["state_dict"]["module.encoder_q.bn1.num_batches_tracked"] == 9
    group = content["optimizer"]["param_groups"][0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, False)
    params = [n for n in q if not n.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert group["params"] == list(range(2 * len(params)))
    assert list(content["optimizer"]["state"]) == list(range(len(params)))
    shapes = [tuple(s["momentum_buffer"].shape) for s in content["optimizer"]["state"].values()]
    assert shapes == [tuple(content["state_dict"][f"module.encoder_q.{n}"].shape) for n in params]
    notebook = quiet(run, tmp_path / "b.pth.tar", "pth.tar")
    content = torch.load(tmp_path / "b.pth.tar", weights_only=True)
    assert list(content) == ["epoch", "state_dict", "optimizer", "moco_jax"]
    assert "encoder_q.net.3.0.conv1.weight" in content["state_dict"] and "queue" in content["state_dict"]
    assert any("the published code has no resnet_tiny of width 4" in line for line in notebook)


def going_on(config, step=8, size=48):
    """What is said of a run at a step of twenty."""
    return resuming.notes(source.Run(step, 20, {"memory": {"queue": np.zeros((size, 8))}}, {}, config), "a.pth.tar")


R18 = {"arch": "resnet18", "width": 64}
V2 = {**R18, "stem": "imagenet", "head": "mlp"}
FLAGS = "--epochs 5 --cos --batch-size 16 --wd 0.0001 --moco-dim 8 --moco-k 40 --moco-m 0.9 --moco-t 0.2"
STEPS = runs.tiny.Optimizer(learning_rate=0.3, linear_scaling=True, schedule="step", milestones=(3, 4))


def test_it_says_how_the_released_code_goes_on():
    """With the flags of that run, whole; inside an epoch it says that whole epochs are all it knows."""
    said = going_on(runs.config(model=V2, size=224), step=9, size=40)
    begin, end = "the released code resumes it: main_moco.py", "--resume a.pth.tar, and your flags of data and GPUs"
    assert said[0] == f"{begin} --arch resnet18 --lr 0.3 {FLAGS} --mlp --aug-plus {end}"
    assert len(said) == 3 and "step 9 lies inside epoch 2" in said[1] and "and 40 is none" in said[2]
    said = going_on(runs.config(model={**V2, "head": "linear"}, size=224, optimizer=STEPS))
    steps = FLAGS.replace("--cos", "--schedule 3 4")
    assert said == (f"{begin} --arch resnet18 --lr 0.01875 {steps} --aug-plus {end}",)
    said = going_on(dataclasses.replace(runs.config(model=V2), views=Views(recipe="moco_v1", size=224)))
    assert said == (f"{begin} --arch resnet18 --lr 0.3 {FLAGS} --mlp {end}",)


def test_it_says_how_the_notebook_goes_on():
    """By arguments of its own: splits of batch norm, the symmetric loss, and milestones that count from 1."""
    linear, symmetric = {**R18, "head": "linear"}, runs.tiny.Moco(0.9, 0.2, symmetric=True)
    config = runs.config(model=linear, size=32, optimizer=STEPS, moco=symmetric)
    config = dataclasses.replace(config, views=Views(recipe="cifar_demo", size=32))
    steps = FLAGS.replace("--cos", "--schedule 4 5")
    begin = "the notebook resumes it: --arch resnet18"
    end = "--resume a.pth.tar"
    assert going_on(config) == (f"{begin} --lr 0.01875 {steps} --bn-splits 4 --symmetric {end}",)
    whole = dataclasses.replace(config, bn=BatchNorm(0), moco=runs.tiny.Moco(0.9, 0.2), optimizer=Optimizer(0.3))
    said = going_on(whole)
    assert said[0] == f"{begin} --lr 0.3 {FLAGS} --bn-splits 1 {end}"
    assert len(said) == 2 and said[1].endswith("no --cos that counts epochs from 0 (its first one is 1)")


def test_what_that_code_lacks_is_said():
    """A recipe is not taken for another one in silence; nothing is said where no published code goes on."""
    config = runs.config(
        channels=13, model=V2, moco=runs.tiny.Moco(symmetric=True), queue=runs.tiny.Queue(48, mask_same_image=True)
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, pairs="same_group"))
    lacks = "no views.recipe=bands (it augments as moco_v1), no views.size=16 (its views have 224 pixels), "
    lacks += "no moco.symmetric, no queue.mask_same_image, no data.pairs=same_group"
    assert going_on(config)[1:] == (f"that code trains otherwise than this run from there on: it has {lacks}",)
    assert "--aug-plus" not in going_on(config)[0]
    assert "recipe=moco_v2 (it augments as cifar_demo)" in going_on(runs.config(model={**R18, "head": "linear"}))[1]
    for model in ({**R18, "head": "mlp"}, {**V2, "width": 4}, {**V2, "arch": "resnet_tiny"}):
        (said,) = going_on(runs.config(model=model))
        assert said.startswith("the published code has no resnet")


@pytest.mark.parametrize("which", ["online", "target"])
def test_a_backbone_is_a_state_dict_of_the_encoder_that_was_asked_for(run, tmp_path, which):
    """Under torchvision's names; no head, no queue; the table says what stayed behind."""
    torch = pytest.importorskip("torch")
    said = quiet(run, tmp_path / "a.pth", "pth", which=which)
    tensors = torch.load(tmp_path / "a.pth", weights_only=True)
    _, _, tree = everything(run)
    kernel = tree[which]["params"]["backbone"]["layer2_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(tensors["layer2.0.conv1.weight"].numpy(), kernel.transpose(3, 2, 0, 1))
    assert not [n for n in tensors if n.startswith(("fc", "queue"))]
    assert any(line.startswith(f"{which} layer3") for line in said)
    assert "left over: none" in said
    assert any("left out: the projection head (4 tensors, 16 -> 8)" in line for line in said)


def test_what_stays_behind_is_what_was_there(run, tmp_path):
    """Of two encoders without training no momentum and no queue is left out; of weights alone no pixels."""
    torch = pytest.importorskip("torch")
    quiet(run, tmp_path / "a.pth.tar", "pth.tar")
    pixels = "left out: how images are prepared, which has no place there"
    for path in (run, tmp_path / "a.pth.tar"):
        said = quiet(path, tmp_path / f"{path.name}.pth", "pth")
        assert "left out: the other encoder, the optimizer and the dictionary" in said and pixels in said
        assert said.index("left over: none") > said.index(pixels)
    content = torch.load(tmp_path / "a.pth.tar", weights_only=True)
    state = {n: t for n, t in content["state_dict"].items() if "queue" not in n}
    torch.save({"state_dict": state}, tmp_path / "b.pth.tar")
    said = quiet(tmp_path / "b.pth.tar", tmp_path / "b.pth", "pth")
    assert "left out: the other encoder" in said and pixels not in said
    assert pixels not in quiet(tmp_path / "b.pth", tmp_path / "c.pth", "pth")


def test_the_table_counts_every_tensor(run, tmp_path):
    """As many values as the state holds, by part."""
    pytest.importorskip("torch")
    said = quiet(run, tmp_path / "a.pth.tar", "pth.tar")
    _, _, tree = everything(run)
    counted = [line[16:37].split() for line in said if line.startswith(("online ", "target ", "momentum", "memory"))]
    leaves = [leaf for name, part in tree.items() if name != "step" for leaf in jax.tree.leaves(part)]
    assert sum(int(c[0]) for c in counted) == len(leaves)
    assert sum(int(c[1].replace(",", "")) for c in counted) == sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize("form", ["pth", "pth.tar"])
def test_features_that_differ_are_refused(run, tmp_path, monkeypatch, really, form):
    """A mapping that is wrong must not leave a file behind, nor the folders that were made for it."""
    pytest.importorskip("torch")
    before = pytorch.features
    monkeypatch.setattr(pytorch, "features", lambda *a: before(*a) * 1.0001)
    with pytest.raises(ConfigError, match="features by PyTorch differ from ours by 1.0e-04 of their length"):
        quiet(run, tmp_path / "new/deep/a", form)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_state_that_is_not_read_back_as_it_was_is_an_error(run, tmp_path, monkeypatch):
    """It is compared array by array with what was written."""
    pytest.importorskip("torch")
    before = recognise.from_file

    def changed(path):
        found = before(path)
        found.training.queue[3, 2] += 1
        return found

    monkeypatch.setattr(recognise, "from_file", changed)
    with pytest.raises(RuntimeError, match="queue/queue is not what it was"):
        quiet(run, tmp_path / "a.pth.tar", "pth.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("src", "dst", "form", "options", "message"),
    [
        ("run", "a", "onnx", {}, "--format 'onnx' is unknown"),
        ("run", "run", "pth", {}, "run is there already: give another name, or remove it"),
        ("run", "file/a.pth", "pth", {}, "cannot be written .(File exists|Not a directory)"),
        ("run", "other/checkpoints/9", "pth", {}, "lies among the checkpoints of .*other"),
        ("run", "link", "pth", {}, "link is there already"),
        ("run", "run/checkpoints/a.pth", "pth", {}, "lies among the checkpoints of"),
        ("run", "run/checkpoints/8/a.pth", "pth", {}, "lies among the checkpoints of"),
        ("run", "way/a.pth", "pth", {}, "lies among the checkpoints of .*other"),
        ("run", "new/..", "pth", {}, r"new/\.\. ends in no name"),
        ("run", "a", "timm", {"licence": ""}, "--license is empty: name one, such as apache-2.0"),
        ("run", "a", "timm", {"licence": " \n"}, "--license is empty"),
        ("run", "loop/a.pth", "pth", {}, "loop/a.pth.* cannot be written"),
        ("run", "a\0b", "pth", {}, r"a\\x00b' cannot be written .*embedded null"),
        ("run", "new/deep/a.pth", "pth", {"classifier": "run"}, "holds no finished result"),
        ("run", "a", "orbax", {}, "run is a run's folder already"),
        ("none", "a", "pth", {}, "there is no .*none"),
        ("run", "a", "pth", {"which": "both"}, "--encoder is 'both'; it must be online or target"),
        ("run", "a", "pth.tar", {"which": "target"}, "holds both encoders: leave --encoder out"),
        ("run", "a", "orbax", {"which": "target"}, "--format=orbax holds both encoders: leave --encoder out"),
        ("run", "a", "pth.tar", {"classifier": "run"}, "--classifier goes with a backbone alone"),
        ("run", "a", "detectron2", {"classifier": "run"}, "--classifier goes with a backbone alone"),
        ("run", "a", "pth", {"classifier": "run"}, "holds no finished result of `moco-jax eval-linear`"),
        ("run", "a", "pth", {"config": runs.config()}, "--config is read by --format=orbax alone"),
        ("run", "a", "pth", {"licence": "mit"}, "--format=pth has none"),
        ("run", "a", "pth", {"sha256": "00"}, "--sha256 is of a file, and .*run is a folder"),
        ("empty", "a", "pth", {}, "empty is no run's folder, no file of weights, and no folder with config.json"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(run, tmp_path, src, dst, form, options, message):
    """Before anything is written."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "other/checkpoints").mkdir(parents=True)
    (tmp_path / "other/config.json").write_text("{}")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "way").symlink_to(tmp_path / "other/checkpoints")
    if "classifier" in options:
        options["classifier"] = tmp_path / options["classifier"]
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        quiet(tmp_path / src, tmp_path / dst, form, **options)
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


def test_what_would_be_ignored_is_refused(run, tmp_path, monkeypatch):
    """A config for a file that holds its own, an encoder that does not exist; another mechanism before any table."""
    pytest.importorskip("torch")
    quiet(run, tmp_path / "a.pth.tar", "pth.tar")
    with pytest.raises(ConfigError, match="a.pth.tar is of a run of moco_jax, whose config it holds: leave --config"):
        quiet(tmp_path / "a.pth.tar", tmp_path / "b", "orbax", config=runs.config())
    with pytest.raises(ConfigError, match="a.pth.tar is run of moco, step 8 .*: make one of it by --format=orbax"):
        quiet(tmp_path / "a.pth.tar", tmp_path / "b", "pth.tar")
    with pytest.raises(ConfigError, match="--encoder is 'nonsense'"):
        quiet(tmp_path / "a.pth.tar", tmp_path / "b", "orbax", which="nonsense")
    monkeypatch.setattr(moco_state, "check", lambda config: (_ for _ in ()).throw(ConfigError("of another mechanism")))
    monkeypatch.setattr(table, "of", None)
    with pytest.raises(ConfigError, match="of another mechanism"):
        quiet(run, tmp_path / "b", "pth.tar")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth.tar", "run"]


def test_nothing_beside_the_destination_is_touched(run, tmp_path, monkeypatch):
    """Whatever its name is; parents are made; what appears under the name meanwhile stays."""
    pytest.importorskip("torch")
    (tmp_path / "a.pth.part").mkdir()
    (tmp_path / "a.pth.part/x").write_text("mine")
    quiet(run, tmp_path / "a.pth", "pth")
    quiet(run, tmp_path / "deep/er/a.pth", "pth")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "a.pth.part", "deep", "run"]
    assert (tmp_path / "a.pth.part/x").read_text() == "mine"

    def meanwhile(*_):
        (tmp_path / "b.pth").write_text("somebody's")
        return "agreed"

    monkeypatch.setattr(agreement, "of", meanwhile)
    with pytest.raises(ConfigError, match="b.pth is there by now, made by something else"):
        quiet(run, tmp_path / "b.pth", "pth")
    assert (tmp_path / "b.pth").read_text() == "somebody's" and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("folder", [True, False])
def test_of_two_that_finish_at_once_one_gets_the_name(tmp_path, folder):
    """What looks whether the name is free and what takes it are one step."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").mkdir() if folder else (tmp_path / name / "a").write_text(name)
        (tmp_path / name / "a/file").write_text(name) if folder else None
    convert_module = sys.modules["moco_jax.conversion.convert"]
    convert_module._take_place(tmp_path / "one/a", tmp_path / "b")
    with pytest.raises(ConfigError, match="b is there by now, made by something else"):
        convert_module._take_place(tmp_path / "two/a", tmp_path / "b")
    assert (tmp_path / "b/file" if folder else tmp_path / "b").read_text() == "one"


def test_a_run_says_what_it_holds(run):
    """Its encoder is the one of its config, its pixels those of its images."""
    config = runs.config(channels=1)
    about = {"values": {"channels": 1, "dtype": "uint16", "low": 0.0, "high": 4095.0}}
    found = source.pixels_of(config, about)
    assert (found.size, found.resize, found.dtype, found.range) == (16, 20, "uint16", (0.0, 4095.0))
    _, _, tree = everything(run)
    with pytest.raises(ConfigError, match="the checkpoint holds .*width=4.*, and its config says .*width=8"):
        source._encoder(tree["online"], runs.config(model={"width": 8}))


def test_double_precision_is_not_narrowed_in_silence():
    """JAX would make float32 of it; the variable that keeps it is named."""
    with pytest.raises(ConfigError, match="w is float64: set JAX_ENABLE_X64=1 to convert it"):
        written._placed({"w": np.zeros(2)})


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_name_that_is_taken_and_not_filled_is_given_back(tmp_path, monkeypatch, error):
    """As where the file system says no at the very end, or somebody presses Ctrl-C."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a").write_text("one")
    (tmp_path / "one/b").mkdir()

    def no(self, target):
        raise error("no")

    monkeypatch.setattr(pathlib.Path, "rename", no)
    for name in ("a", "b"):
        with pytest.raises(error, match="no"):
            sys.modules["moco_jax.conversion.convert"]._take_place(tmp_path / "one" / name, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_paths_of_home_and_names_that_are_no_text(run, tmp_path, monkeypatch):
    """As the shell would have written them; a card has a name all the same."""
    pytest.importorskip("torch")
    pytest.importorskip("safetensors", reason="safetensors is an extra")
    monkeypatch.setenv("HOME", str(tmp_path))
    runs.write(tmp_path / "imagenet", model=RELEASED)
    quiet("~/imagenet", "~/a.pth", "pth")
    with pytest.raises(ConfigError, match="a.pth is a ResNet in .* names: start a run from it by --config.train.init"):
        quiet("~/a.pth", "~/b.pth.tar", "pth.tar")
    assert any("nothing in it says how images are prepared" in line for line in quiet("~/a.pth", "~/b.pth", "pth"))
    quiet("~/imagenet", "~/c.pth.tar", "pth.tar")
    for name in ("imagenet", "c.pth.tar"):  # whose description says it
        assert not any("nothing in it says" in line for line in quiet(f"~/{name}", f"~/of {name}.pth", "pth"))
    odd = tmp_path / os.fsdecode(b"n\xff.pth")
    (tmp_path / "a.pth").rename(odd)
    quiet(odd, tmp_path / "hf", "huggingface")
    card = (tmp_path / "hf/README.md").read_text()
    assert "# n?.pth: resnet_tiny" in card and "A backbone; nobody says how it was trained." in card


def test_the_source_may_have_any_name(tmp_path, monkeypatch):
    """That of the destination with an ending, too: it is still there afterwards, and after a refusal; `.` has one."""
    pytest.importorskip("torch")
    runs.write(tmp_path / "m.part")
    with pytest.raises(ConfigError, match="timm"):
        quiet(tmp_path / "m.part", tmp_path / "m", "timm")
    quiet(tmp_path / "m.part", tmp_path / "m", "pth")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "m.part"] and everything(tmp_path / "m.part")[0] == 8
    monkeypatch.chdir(tmp_path / "m.part/checkpoints")
    assert source.open_source(pathlib.Path(".."), sha256=None).name == "m.part"
    monkeypatch.chdir(tmp_path / "m.part")
    assert source.open_source(pathlib.Path("."), sha256=None).name == "m.part"


def swapped(found):
    online, momentum = found.online.backbone, found.training.momentum
    return {
        "target": {"target": found.target._replace(backbone=online)},
        "queue": {"training": found.training._replace(queue=found.training.queue[::-1])},
        "ptr": {"training": found.training._replace(ptr=found.training.ptr + 1)},
        "momentum": {"training": found.training._replace(momentum=momentum | {"bn1.bias": momentum["bn1.weight"]})},
    }


@pytest.mark.parametrize("part", ["target", "queue", "ptr", "momentum"])
def test_a_run_that_is_not_what_the_file_holds_is_an_error(run, tmp_path, monkeypatch, part):
    """A part in another's place on the way into the state: what is stored is held against the file's own tensors."""
    pytest.importorskip("torch")
    quiet(run, tmp_path / "a.pth.tar", "pth.tar")
    before = moco_state.to_state
    monkeypatch.setattr(
        moco_state, "to_state", lambda found, **at: before(found._replace(**swapped(found)[part]), **at)
    )
    with pytest.raises(RuntimeError, match=f"{'queue' if part == 'ptr' else part}/.* is not what it was"):
        quiet(tmp_path / "a.pth.tar", tmp_path / "back", "orbax")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth.tar", "run"]


def test_our_key_is_held_against_the_rest(run, tmp_path):
    """An epoch that someone changed, a step outside, a description that is none."""
    torch = pytest.importorskip("torch")
    quiet(run, tmp_path / "a.pth.tar", "pth.tar")
    content = torch.load(tmp_path / "a.pth.tar", weights_only=True)
    about = json.loads(content["moco_jax"]["about"])
    for change, message in (
        ({"epoch": 3}, "it says epoch 3, and moco_jax wrote step 8 beside it"),
        ({"moco_jax": {**content["moco_jax"], "step": 400}}, "it says epoch 2, and moco_jax wrote step 400"),
        ({"moco_jax": {**content["moco_jax"], "about": "{"}}, "its key 'moco_jax' is not what moco_jax writes: about"),
        ({"moco_jax": {**content["moco_jax"], "about": json.dumps(about | {"format": 7})}}, "has format version 7"),
        (
            {"moco_jax": {**content["moco_jax"], "written": torch.zeros(3, dtype=torch.int32)}},
            r"written is \(3,\), and the queue holds 40",
        ),
    ):
        torch.save(content | change, tmp_path / "b.pth.tar")
        with pytest.raises(ConfigError, match=message):
            quiet(tmp_path / "b.pth.tar", tmp_path / "back", "orbax")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth.tar", "b.pth.tar", "run"]


def test_a_file_of_a_published_name_says_so(run, tmp_path, monkeypatch):
    """By the MD5 that its authors give."""
    pytest.importorskip("torch")
    quiet(run, tmp_path / "a.pth.tar", "pth.tar")
    md5, _ = pytorch.digests(tmp_path / "a.pth.tar")
    monkeypatch.setitem(recognise.PUBLISHED, md5[:8], "moco_v9_5ep_pretrain")
    said = quiet(tmp_path / "a.pth.tar", tmp_path / "a.pth", "pth")
    assert any("it is moco_v9_5ep_pretrain by the MD5" in line for line in said)


def test_a_format_without_checksum_is_said(run, tmp_path):
    """Unless its SHA-256 was compared; a zip archive has one for each entry."""
    torch = pytest.importorskip("torch")
    quiet(run, tmp_path / "a.pth", "pth")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    _, sha256 = pytorch.digests(tmp_path / "old.pth")
    for name, options, wanted in (("a", {}, False), ("old", {}, True), ("old", {"sha256": sha256}, False)):
        said = quiet(tmp_path / f"{name}.pth", tmp_path / f"{name}{len(options)}", "pth", **options)
        assert any("its format has no checksum" in line for line in said) == wanted


def test_a_classifier_of_the_file_travels(run, tmp_path):
    """As fc, with the backbone; where the format has no place for it, that is said."""
    torch = pytest.importorskip("torch")
    quiet(run, tmp_path / "a.pth", "pth")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    torch.save(content | {"fc.weight": torch.ones(3, 16), "fc.bias": torch.arange(3.0)}, tmp_path / "b.pth")
    quiet(tmp_path / "b.pth", tmp_path / "c.pth", "pth")
    assert torch.load(tmp_path / "c.pth", weights_only=True)["fc.bias"].tolist() == [0, 1, 2]


def test_a_wrong_sha256_is_refused_before_the_file_is_read(run, tmp_path):
    """The only check there is for files without checksums."""
    pytest.importorskip("torch")
    quiet(run, tmp_path / "a.pth.tar", "pth.tar")
    with pytest.raises(ConfigError, match="a SHA-256 has 64 hexadecimal digits, and '1234' is none"):
        quiet(tmp_path / "a.pth.tar", tmp_path / "b", "pth", sha256="1234")
    with pytest.raises(ConfigError, match="a.pth.tar has SHA-256 .*, not 0000"):
        quiet(tmp_path / "a.pth.tar", tmp_path / "b", "pth", sha256="0" * 64)
    _, sha256 = pytorch.digests(tmp_path / "a.pth.tar")
    quiet(tmp_path / "a.pth.tar", tmp_path / "b", "pth", sha256=sha256.upper())


def test_states_are_compared_by_values_types_and_shapes():
    """A state of other bits, another type or another shape is not the same."""
    one = {"step": np.zeros((), np.int32), "memory": {"queue": np.zeros((2, 3), np.float32)}}
    same = written.digests(one)
    assert "all 2 arrays" in written.unchanged(same, written.digests(one))
    for other in (
        one | {"step": np.ones((), np.int32)},
        one | {"step": np.zeros((), np.float32)},
        one | {"memory": {"queue": np.zeros((3, 2), np.float32)}},
        one | {"memory": {}},
        one | {"target": np.zeros(1)},
    ):
        with pytest.raises(RuntimeError, match="is not what it was before it was written"):
            written.unchanged(same, written.digests(other))
