"""Files of other programs: which one wrote it is told by content, and everything in it arrives. Skips without torch."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

torch = pytest.importorskip("torch", reason="torch is not installed: it writes the files that are read here")

from moco_jax.checkpoints import agreement, pytorch, reading, recognise, weights  # noqa: E402
from moco_jax.checkpoints.torch_names import torch_name  # noqa: E402
from moco_jax.checkpoints.training import OURS  # noqa: E402
from moco_jax.config import Config, ConfigError, to_json  # noqa: E402
from tests.checkpoints import foreign  # noqa: E402
from tests.parity.torchvision_cpu import import_torchvision  # noqa: E402

AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def assert_is(encoder, module, prefix=""):
    """Our network holds what a torch module held, leaf by leaf and nothing else."""
    theirs = {n.removeprefix(prefix): t.numpy() for n, t in module.state_dict().items() if "num_batches" not in n}
    ours = traverse_util.flatten_dict(weights.network(encoder))
    assert {torch_name(path) for path in ours} == theirs.keys()
    for path, leaf in ours.items():
        value = theirs[torch_name(path)]
        np.testing.assert_array_equal(leaf, value.transpose(AXES[value.ndim]))


def momentum(trained):
    """torch's own buffers by the online encoder's names: the optimizer's state by the parameter itself."""
    named = trained.contrast.encoder_q.named_parameters()
    return {n: trained.optimizer.state[p]["momentum_buffer"].numpy() for n, p in named}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in right.items():
        np.testing.assert_array_equal(left[name], value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("addresses", [False, True])
@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_the_released_codes_checkpoint(tmp_path, head, addresses, legacy):
    """v1 and v2, both formats of torch, parameters numbered by place or by address: all that it held, by name."""
    made = foreign.trained(foreign.tiny(head=head))
    content = foreign.by_address(made.content, made.optimizer) if addresses else made.content
    found = reading.read(foreign.save(tmp_path / "checkpoint_0002.pth.tar", content, legacy=legacy))
    assert (
        found.layout
        == f"MoCo checkpoint, the released code's, MoCo {'v2 (MLP' if head == 'mlp' else 'v1 (linear'} head)"
    )
    assert_is(found.online, made.contrast.encoder_q)
    assert_is(found.target, made.contrast.encoder_k)
    assert found.online.model == found.target.model
    assert (found.online.model.arch, found.online.model.stem, found.online.model.width) == (
        "resnet_tiny",
        "imagenet",
        4,
    )
    assert (found.online.model.head, found.online.model.dim, found.online.channels) == (head, foreign.DIM, 3)
    assert_same(found.training.momentum, momentum(made))
    assert any(np.any(value) for value in found.training.momentum.values())
    np.testing.assert_array_equal(found.training.queue, made.contrast.queue.numpy().T)
    assert found.training.queue.shape == (foreign.QUEUE, foreign.DIM)
    assert (found.training.ptr, found.training.epoch) == (3 * foreign.ROWS, 3)
    assert {k: found.training.settings[k] for k in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.03,
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }
    assert "params" not in found.training.settings
    names = {f"{e}.{n}" for e in ("encoder_q", "encoder_k") for n in made.contrast.encoder_q.state_dict()}
    assert set(found.dropped) == {n for n in names if n.endswith("num_batches_tracked")}
    assert found.pixels == recognise.IMAGENET and found.classifier is None and found.ours is None
    assert found.published is None and found.sha256 == pytorch.digests(tmp_path / "checkpoint_0002.pth.tar")[1]


@pytest.mark.parametrize("channels", [1, 13])
def test_other_channels_have_no_known_pixels(tmp_path, channels):
    """Nobody says what a network of other channels than three expects: a guess would be wrong in silence."""
    made = foreign.trained(foreign.tiny(channels=channels), channels=channels)
    found = reading.read(foreign.save(tmp_path / "a.pth.tar", made.content))
    assert found.online.channels == channels and found.pixels is None
    assert_is(found.online, made.contrast.encoder_q)


@pytest.mark.parametrize("layout", ["the released code's", "the notebook's", "torchvision's"])
def test_another_stem_has_no_known_pixels(tmp_path, layout):
    """A 3x3 stem in the layouts that have 7x7 ones, and the other way round: what is told by layout alone is not."""
    stem = "imagenet" if layout == "the notebook's" else "cifar"
    make = foreign.tiny("resnet18", stem, "linear")
    state = (foreign.of_notebook(make()) if layout == "the notebook's" else make()).state_dict()
    if layout != "torchvision's":
        state = {f"module.encoder_q.{n}": t for n, t in state.items()}
    found = reading.read(foreign.save(tmp_path / "a.pth", state))
    assert (found.online.model.stem, found.online.channels) == (stem, 3)
    assert found.pixels is None and not found.assumed


def test_the_notebooks_checkpoint(tmp_path):
    """Numbers of a Sequential are layers; its epoch is done; images are CIFAR's."""
    made = foreign.notebook()
    found = reading.read(foreign.save(tmp_path / "model_last.pth", made.content))
    assert found.layout == "MoCo checkpoint, the CIFAR-10 notebook's"
    torch.manual_seed(0)
    plain = foreign.Contrast(foreign.tiny("resnet18", "cifar", "linear"))
    state = made.contrast.encoder_q.state_dict()
    plain.encoder_q.load_state_dict(dict(zip(plain.encoder_q.state_dict(), state.values(), strict=True)))
    assert_is(found.online, plain.encoder_q)
    assert (found.online.model.arch, found.online.model.stem, found.online.model.head) == (
        "resnet18",
        "cifar",
        "linear",
    )
    theirs = momentum(made)
    named = dict(zip((n for n, _ in plain.encoder_q.named_parameters()), theirs.values(), strict=True))
    assert_same(found.training.momentum, named)
    assert (found.training.epoch, found.training.ptr, found.pixels) == (3, 12, recognise.CIFAR)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_the_online_encoder_alone(tmp_path, prefix):
    """As the published weights are: no target, no queue, no optimizer; so nothing to continue from."""
    made = foreign.trained()
    state = {f"{prefix}encoder_q.{n}": t for n, t in made.contrast.encoder_q.state_dict().items()}
    for content in (state, {"state_dict": state}, {"epoch": 200, "arch": "resnet_tiny", "state_dict": state}):
        found = reading.read(foreign.save(tmp_path / "a.pth.tar", content))
        assert_is(found.online, made.contrast.encoder_q)
        assert found.target is None and found.training is None and found.layout.endswith("MoCo v2 (MLP head)")


@pytest.mark.parametrize("missing", ["optimizer", "epoch", "encoder_k", "queue", "queue_ptr"])
def test_part_of_a_checkpoint_is_weights(tmp_path, missing):
    """Whatever lacks is no reason to refuse the encoders; an epoch alone is, beside an optimizer."""
    made = foreign.trained()
    content = {k: v for k, v in made.content.items() if k != missing}
    part = f"module.{missing}"
    content["state_dict"] = {
        n: t for n, t in content["state_dict"].items() if n != part and not n.startswith(part + ".")
    }
    path = foreign.save(tmp_path / "a.pth.tar", content)
    if missing == "epoch":
        with pytest.raises(ConfigError, match="epoch is None; it must be a whole number from 0 on"):
            reading.read(path)
        return
    found = reading.read(path)
    assert found.training is None and (found.target is None) == (missing == "encoder_k")


def test_a_linear_classifier(tmp_path):
    """main_lincls.py's: backbone and fc apart, best_acc1 no weight, its optimizer nothing to continue from."""
    made = foreign.linear_classifier(foreign.tiny()())
    found = reading.read(foreign.save(tmp_path / "model_best.pth.tar", made.content))
    assert found.layout == "a linear classifier of main_lincls.py"
    assert found.training is None and found.target is None and found.online.head == {}
    fc = made.model.module.fc
    np.testing.assert_array_equal(found.classifier.weight, fc.weight.detach().numpy())
    np.testing.assert_array_equal(found.classifier.bias, fc.bias.detach().numpy())
    assert found.classifier.names is None
    without = {n: t for n, t in made.content["state_dict"].items() if not n.startswith("module.fc")}
    path = foreign.save(tmp_path / "b.pth.tar", {**made.content, "state_dict": without})
    with pytest.raises(ConfigError, match="no fc.weight, which a linear classifier has"):
        reading.read(path)


def test_a_supervised_network_is_no_linear_classifier(tmp_path):
    """The same layout, written by the example that main_lincls.py began as: told by what its optimizer trained."""
    made = foreign.linear_classifier(foreign.tiny()())
    whole = torch.optim.SGD(made.model.parameters(), 0.1, momentum=0.9)
    content = {**made.content, "optimizer": whole.state_dict()}
    found = reading.read(foreign.save(tmp_path / "model_best.pth.tar", content))
    assert found.layout == "a supervised network of PyTorch's ImageNet example"
    assert found.classifier is not None and found.training is None
    stripped = {k: v for k, v in made.content.items() if k != "optimizer"}
    found = reading.read(foreign.save(tmp_path / "a.pth.tar", stripped))
    assert found.layout == "a linear classifier of main_lincls.py"


@pytest.mark.parametrize("kind", ["classifier", "bare", "MoCo v2's head", "as state_dict"])
def test_torchvisions_names(tmp_path, kind):
    """A state_dict as it is, with a classifier, without one, with two layers of head, or inside of a dict."""
    torch.manual_seed(0)
    module = foreign.tiny(head="mlp" if kind == "MoCo v2's head" else "linear")()
    state = module.state_dict()
    if kind == "bare":
        state = {n: t for n, t in state.items() if not n.startswith("fc.")}
    content = {"state_dict": state} if kind == "as state_dict" else state
    found = reading.read(foreign.save(tmp_path / "resnet.pth", content))
    assert found.layout == "a ResNet in torchvision's names"
    assert (found.classifier is None) == (kind in ("bare", "MoCo v2's head")) and bool(found.online.head) == (
        kind == "MoCo v2's head"
    )
    backbone = {n: t.numpy() for n, t in state.items() if not n.startswith("fc.") and "num_batches" not in n}
    assert_same(found.online.backbone, backbone)
    assert set(found.dropped) == {n for n in state if "num_batches" in n}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_torchvisions_networks(tmp_path, arch):
    """Of real size: features by their module, by torch's operations and by our network agree to rounding."""
    torchvision = import_torchvision()
    if torchvision is None:
        pytest.skip("torchvision is not installed")
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, arch)(num_classes=7).train()
    with torch.no_grad():
        theirs(torch.randn(8, 3, 96, 96))  # running statistics that are not those of the start
    theirs.eval()
    found = reading.read(foreign.save(tmp_path / "a.pth", theirs.state_dict()))
    assert (found.online.model.arch, found.online.model.stem, found.online.model.width) == (arch, "imagenet", 64)
    assert found.pixels == recognise.IMAGENET and found.classifier.weight.shape[0] == 7
    x = agreement.images(3, found.pixels._replace(size=96, resize=96))
    images = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images)).numpy()
    plain = pytorch.features(found.online.backbone, found.online.model, images)
    assert agreement.furthest(plain, expected) < 1e-5  # measured: 0
    assert agreement.furthest(agreement._forward(found.online, 96)(x), expected) < 1e-5  # measured: 6e-7


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "head"), [("resnet18", "linear"), ("resnet50", "mlp")])
def test_the_released_codes_checkpoint_of_real_size(tmp_path, arch, head):
    """With torchvision's modules: momentum goes by the order of their parameters."""
    torchvision = import_torchvision()
    if torchvision is None:
        pytest.skip("torchvision is not installed")

    def make():
        module = getattr(torchvision.models, arch)(num_classes=foreign.DIM)
        if head == "mlp":
            width = module.fc.in_features
            module.fc = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), module.fc)
        return module

    made = foreign.trained(make, arch=arch, image=64, steps=1)
    found = reading.read(foreign.save(tmp_path / "a.pth.tar", made.content))
    assert_is(found.online, made.contrast.encoder_q)
    assert_is(found.target, made.contrast.encoder_k)
    assert_same(found.training.momentum, momentum(made))


def test_published_files_are_known_by_their_md5(tmp_path, monkeypatch):
    """Eight digits of MD5, as their authors give them."""
    path = foreign.save(tmp_path / "a.pth", foreign.tiny()().state_dict())
    monkeypatch.setitem(recognise.PUBLISHED, pytorch.digests(path)[0][:8], "moco_v9")
    assert reading.read(path).published == "moco_v9"


def test_tensors_of_another_kind_of_file():
    """A bare dict, such as safetensors gives: the same rules, with the layout and digest of who read it."""
    state = {n: t.numpy() for n, t in foreign.tiny(head="linear")().state_dict().items()}
    found = recognise.from_tensors(state, "a file of mine", "12ab")
    assert (found.layout, found.sha256, found.training) == ("a file of mine", "12ab", None)
    assert found.classifier is not None and found.online.channels == 3


def test_half_precision_is_widened_exactly(tmp_path):
    """float16 and bfloat16 weights, momentum and queue, as mixed precision leaves them."""
    made = foreign.trained()

    def narrow(value):
        if isinstance(value, dict):
            return {k: narrow(v) for k, v in value.items()}
        return value.half() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    found = reading.read(foreign.save(tmp_path / "a.pth.tar", narrow(made.content)))
    leaves = [*jax.tree.leaves(weights.network(found.online)), found.training.queue, *found.training.momentum.values()]
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    np.testing.assert_array_equal(found.training.queue, made.contrast.queue.half().float().numpy().T)
    state = {n: t.bfloat16() if t.is_floating_point() else t for n, t in foreign.tiny()().state_dict().items()}
    found = reading.read(foreign.save(tmp_path / "b.pth", state))
    np.testing.assert_array_equal(found.online.backbone["conv1.weight"], state["conv1.weight"].float().numpy())


ABOUT = {
    "format": 1,
    "total_steps": 400,
    "config": to_json(Config()),
    "values": {"channels": 3, "dtype": "uint8", "low": 0.0, "high": 255.0},
    "objects": {"encoder": "tiny", "source": ""},
}


def test_published_files_and_pixels_are_those_of_their_authors():
    """The names beside the first digits of MD5; mean and std of ImageNet and CIFAR-10 as the originals write them."""
    assert recognise.PUBLISHED == {
        "b251726a": "moco_v1_200ep_pretrain",
        "59fd9945": "moco_v2_200ep_pretrain",
        "a04e12f8": "moco_v2_800ep_pretrain",
    }
    assert recognise.IMAGENET[4:6] == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert recognise.CIFAR[4:6] == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o | {"scaler": 1}, "its optimizer holds scaler, which no SGD does"),
        (lambda o: o | {"param_groups": [o["param_groups"][0] | {"centered": True}]}, "is set to centered"),
        (
            lambda o: o | {"state": o["state"] | {0: o["state"][0] | {"square_avg": torch.zeros(1)}}},
            "its optimizer holds square_avg of conv1.weight, which no SGD does",
        ),
    ],
)
def test_an_optimizer_that_holds_more_is_refused(tmp_path, change, message):
    """What would be left out in silence belongs to another optimizer."""
    made = foreign.trained()
    content = {**made.content, "optimizer": change(made.content["optimizer"])}
    with pytest.raises(ConfigError, match=f"{message}.*; save it without 'optimizer' to use its weights alone$"):
        reading.read(foreign.save(tmp_path / "a.pth.tar", content))
    del content["optimizer"]  # as it says
    assert reading.read(foreign.save(tmp_path / "a.pth.tar", content)).online.head


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ({"momentum": torch.tensor([0.9, 0.9])}, "momentum of type ndarray"),
        ({"nesterov": torch.tensor([True, False])}, "nesterov of type ndarray"),
        ({"nesterov": [0.5] * 1000}, "nesterov of type list"),
        ({"weight_decay": "a\nb" * 500}, r"weight_decay 'a\\nba\\n.*\.\.\."),
    ],
)
def test_settings_of_the_optimizer_are_numbers_or_switches(tmp_path, setting, shown):
    """What could not be compared with a config's, nor be printed in a line, is refused; a tensor of one is a number."""
    content = foreign.trained().content
    group = content["optimizer"]["param_groups"][0]
    changed = {**content["optimizer"], "param_groups": [group | setting]}
    with pytest.raises(ConfigError, match=f"has {shown}, where an SGD has a number or a switch") as error:
        reading.read(foreign.save(tmp_path / "a.pth.tar", {**content, "optimizer": changed}))
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
    changed["param_groups"] = [group | {"lr": torch.tensor(0.5)}]
    found = reading.read(foreign.save(tmp_path / "b.pth.tar", {**content, "optimizer": changed}))
    assert found.training.settings["lr"] == 0.5 and type(found.training.settings["lr"]) is float


def test_what_only_training_needs_is_named_where_there_is_none(tmp_path):
    """An online encoder with queue and optimizer, but no target; a count of batches that is none is refused."""
    made = foreign.trained()
    alone = {n: t for n, t in made.content["state_dict"].items() if "encoder_k" not in n}
    found = reading.read(foreign.save(tmp_path / "a.pth.tar", {**made.content, "state_dict": alone}))
    assert found.dropped[-4:] == ("epoch", "optimizer", "queue", "queue_ptr")
    name = next(n for n in alone if n.endswith("bn1.num_batches_tracked"))
    content = {**made.content, "state_dict": alone | {name: torch.zeros(5, 5)}}
    with pytest.raises(ConfigError, match=r"num_batches_tracked is float32\(5, 5\), and no count"):
        reading.read(foreign.save(tmp_path / "b.pth.tar", content))


def damaged(about):
    """Descriptions that lack something or hold another kind of it."""
    for key in ("total_steps", "config", "values", "objects"):
        yield {k: v for k, v in about.items() if k != key}
    yield about | {"total_steps": 0}
    yield about | {"total_steps": "400"}
    yield about | {"total_steps": 20}  # less than its epochs
    yield about | {"config": {}}
    yield about | {"config": about["config"] | {"seed": "one"}}
    yield about | {"values": about["values"] | {"channels": 3.5}}
    yield about | {"values": about["values"] | {"high": 0.0}}
    yield about | {"values": about["values"] | {"another": 1}}
    yield about | {"objects": {"encoder": "tiny"}}


def test_what_moco_jax_wrote_beside(tmp_path):
    """Step, rows' steps and description come back; anything else under that key is refused."""
    made = foreign.trained()
    ours = {"step": 7, "written": torch.arange(-17, 7, dtype=torch.int32), "about": json.dumps(ABOUT)}
    found = reading.read(foreign.save(tmp_path / "a.pth.tar", {**made.content, OURS: ours}))
    assert (found.ours.step, found.ours.about) == (7, json.loads(json.dumps(ABOUT)))
    assert found.pixels == recognise.IMAGENET and not found.assumed  # its description says how images are prepared
    np.testing.assert_array_equal(found.ours.written, np.arange(-17, 7))
    for wrong, change in {
        "step": {"step": 7.5},
        "step ": {"step": -1},
        " step": {"step": True},
        "written": {"written": torch.arange(-17, 7)},
        "written, of keys that come after its step,": {"step": 6},
        "one key more": {"extra": 1},
        "about": {"about": "[1]"},
        "about ": {"about": "[" * 100_000},
        " about": {"about": None},
        **{f"{'  ' * i}about": {"about": json.dumps(change)} for i, change in enumerate(damaged(ABOUT), 2)},
    }.items():
        path = foreign.save(tmp_path / "b.pth.tar", {**made.content, OURS: {**ours, **change}})
        with pytest.raises(ConfigError, match=f"'moco_jax' is not what moco_jax writes: {wrong.strip()} is missing"):
            reading.read(path)
    path = foreign.save(tmp_path / "b.pth.tar", {**made.content, OURS: [ours]})
    with pytest.raises(ConfigError, match="step is missing"):
        reading.read(path)


def test_another_order_of_tensors_is_refused_where_momentum_goes_by_it(tmp_path):
    """Sorted names would give buffers to other layers of the same shape, in silence; weights alone may be sorted."""
    made = foreign.trained()
    content = {**made.content, "state_dict": dict(sorted(made.content["state_dict"].items()))}
    with pytest.raises(ConfigError, match="another order than torch's modules"):
        reading.read(foreign.save(tmp_path / "a.pth.tar", content))
    del content["optimizer"]
    assert_is(reading.read(foreign.save(tmp_path / "a.pth.tar", content)).online, made.contrast.encoder_q)
