"""Folders of timm: what they hold, what cannot be held, and every way in which a folder can be wrong."""

import json

import numpy as np
import pytest

from moco_jax.checkpoints import safetensors_file
from moco_jax.checkpoints.timm_folders import read_timm, write_timm
from moco_jax.config import ConfigError
from tests.checkpoints.portables import NAMES, pixels, portable, same, torchvision

pytest.importorskip("safetensors", reason="safetensors is an extra")


def edited(folder, **changes):
    """config.json with keys changed; None takes one away."""
    path = folder / "config.json"
    config = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "encoder",
    [
        lambda: portable(),
        lambda: portable("resnet50", channels=1, classes=NAMES),
        lambda: portable(channels=13, classes=7, pixels=pixels(13, dtype="uint16", range=(0.0, 4095.0))),
        lambda: portable(pixels=None),
        lambda: portable(pixels=pixels(filter="bicubic")),
    ],
    ids=["plain", "gray with classes", "bands", "no pixels", "bicubic"],
)
def test_there_and_back_is_the_same(tmp_path, encoder):
    """Tensors, classifier with names or without, pixels of any dtype, architecture."""
    encoder = encoder()
    write_timm(encoder, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    back = read_timm(tmp_path)
    same(back.backbone, encoder.backbone)
    assert (back.model.arch, back.model.stem, back.model.width) == (encoder.model.arch, "imagenet", 64)
    assert back.pixels == encoder.pixels and back.layout == f"timm folder ({encoder.model.arch})"
    assert back.origin == (encoder.origin, f"mit, as given at conversion. {encoder.license_note}")
    assert (back.classifier is None) == (encoder.classifier is None)
    if back.classifier is not None:
        assert back.classifier.names == encoder.classifier.names
        assert np.array_equal(back.classifier.weight, encoder.classifier.weight)
        assert np.array_equal(back.classifier.bias, encoder.classifier.bias)


def test_config_says_what_timm_asks_for(tmp_path):
    """Of 13 channels the first layer is not named, or timm 1.0.16 draws it at random."""
    write_timm(portable(classes=3), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "resnet18" and config["num_classes"] == 3 and config["num_features"] == 512
    assert config["label_names"] == ["LABEL_0", "LABEL_1", "LABEL_2"] and "model_args" not in config
    cfg = config["pretrained_cfg"]
    assert cfg["input_size"] == [3, 64, 64] and cfg["mean"] == [0.3, 0.31, 0.32] and cfg["interpolation"] == "bilinear"
    assert cfg["first_conv"] == "conv1" and cfg["license"] == "mit" and cfg["num_classes"] == 3
    write_timm(portable(channels=13), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"] == {"in_chans": 13} and config["num_classes"] == 0 and "label_names" not in config
    assert "first_conv" not in config["pretrained_cfg"] and config["pretrained_cfg"]["input_size"][0] == 13


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda: portable("resnet_tiny"), "timm has no resnet_tiny"),
        (lambda: portable("resnet_tiny", stem="cifar"), "stem 'cifar' .*: --format=pth and --format=pth.tar hold it$"),
        (lambda: portable(width=32), "timm's resnet18 has 64 channels in its first stage, this encoder 32"),
        (lambda: portable(pixels=pixels(2)), "do not fit 3 channels"),
        (lambda: portable(channels=3)._replace(channels=4), r"run: conv1.weight is \(64, 3, 7, 7\)"),
    ],
)
def test_what_timm_cannot_hold_is_refused_before_anything_is_written(tmp_path, encoder, message):
    """The folder stays empty."""
    encoder = encoder()
    with pytest.raises(ConfigError, match=message):
        write_timm(encoder, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet50d"}, "architecture is 'resnet50d'"),
        ({"architecture": ["resnet18"]}, "architecture is "),
        ({"architecture": "resnet34"}, "resnet34 of width 64 needs layer1.2.conv1.weight"),
        ({"architecture": "resnet50"}, "resnet50 of width 64 needs layer1.0.conv3.weight"),
        ({"num_classes": 4}, "num_classes is 4, model.safetensors has 5"),
        ({"label_names": ["a"]}, "1 class names for 5"),
        ({"label_names": 5}, "class names are a list of texts"),
        ({"model_args": {"avg_down": True}}, "model_args.avg_down is True"),
        ({"model_args": {"global_pool": "max"}}, "global_pool is max"),
        ({"model_args": [1]}, "are objects of keys"),
        ({"global_pool": "max"}, "global_pool is max"),
        ({"pretrained_cfg": 1}, "are objects of keys"),
        ({"pretrained_cfg": {"label_offset": 1}}, "label_offset is 1"),
        ({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5, 0, 1]}}, "are those of no images"),
        ({"pretrained_cfg": {"mean": "a", "std": [0.5]}}, "mean is 'a'"),
        ({"pretrained_cfg": {"mean": [0] * 3, "std": [1] * 3, "crop_pct": 0}}, "crop_pct is 0"),
        ({"pretrained_cfg": {"mean": [0] * 3, "std": [1] * 3, "input_size": [3]}}, r"input_size is \[3\]"),
        ({"pretrained_cfg": {"mean": [10**400, 0, 0], "std": [1] * 3}}, r"mean is \[1000000000[0-9]*\.\.\.; a list"),
        ({"pretrained_cfg": {"mean": [0] * 3, "std": [1] * 3, "crop_pct": 10**400}}, r"crop_pct is 10+\.\.\.; a num"),
        (
            {"pretrained_cfg": {"mean": [0] * 3, "std": [1] * 3, "crop_pct": 5e-324}},
            "crop_pct is 5e-324; a .* above 0.01",
        ),
        (
            {"pretrained_cfg": {"mean": [0] * 3, "std": [1] * 3, "input_size": [3, 10**400, 9]}},
            r"input_size is .*\.\.\.;",
        ),
        (
            {"pretrained_cfg": {"mean": [0] * 3, "std": [1] * 3, "input_size": [3, 1.7e308, 1.7e308]}},
            "input_size is .*;",
        ),
        ({"model_args": {"global_pool": ["avg"]}}, r"global_pool is \['avg'\]"),
        ({"global_pool": ["avg"]}, r"global_pool is \['avg'\]"),
        ({"num_classes": 10**300}, r"num_classes is 10{56}\.\.\., model"),
        ({"moco_jax": {"pixels": {}}}, "moco_jax.pixels is not as it was written"),
        ({"moco_jax": {"origin": {}}}, "moco_jax.origin is not as it was written"),
    ],
)
def test_a_config_of_something_else_is_refused_by_key(tmp_path, changes, message):
    """In one line that names the folder's file or the tensor."""
    write_timm(portable(classes=NAMES), tmp_path)
    read_timm(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(ConfigError, match=rf"^[^\n]*{message}[^\n]*$"):
        read_timm(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layer4.1.bn2.bias"), "needs layer4.1.bn2.bias"),
        (lambda t: t.update(extra=np.zeros(1)), "no place for extra"),
        (lambda t: t.update({"layer1.0.conv1.weight": np.zeros((64, 64, 1, 1))}), r"\(64, 64, 1, 1\), where"),
        (lambda t: t.pop("conv1.weight"), "no first convolution"),
        (lambda t: t.update({"conv1.weight": np.zeros(3)}), "no first convolution"),
        (lambda t: t.pop("fc.bias"), "there is fc.weight alone"),
        (lambda t: t.update({"fc.bias": np.zeros(4)}), r"the classifier is .* with bias .*; on [0-9]+ features"),
        (lambda t: t.clear(), "no first convolution"),
    ],
)
def test_tensors_of_something_else_are_refused_by_name(tmp_path, change, message):
    """Too few, too many, of another shape, half a classifier, none."""
    write_timm(portable(classes=NAMES), tmp_path)
    tensors, _ = safetensors_file.read(tmp_path / "model.safetensors")
    change(tensors)
    safetensors_file.write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ConfigError, match=rf"^[^\n]*{message}[^\n]*$"):
        read_timm(tmp_path)


def test_a_mean_of_other_channels_is_nobody_saying(tmp_path):
    """As timm 1.0.16 saves networks whose channels were changed."""
    write_timm(portable(channels=1), tmp_path)
    edited(tmp_path, pretrained_cfg={"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2]})
    assert read_timm(tmp_path).pixels is None


@pytest.mark.parametrize(("share", "resize"), [(0.9, 248), (0.95, 235), (0.875, 256)])
def test_the_side_before_the_crop_is_rounded_down(tmp_path, share, resize):
    """As timm's transforms do: 224 / 0.9 is 248.9, and 224 / 0.95 is 235.8."""
    write_timm(portable(), tmp_path)
    edited(tmp_path, pretrained_cfg={"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": share})
    found = read_timm(tmp_path).pixels
    assert (found.size, found.resize) == (224, resize)


@pytest.mark.parametrize(
    ("changes", "filter"),
    [
        ({}, "bicubic"),
        ({"interpolation": ""}, "bicubic"),
        ({"interpolation": "bilinear", "crop_mode": "center"}, "bilinear"),
        ({"interpolation": "lanczos"}, None),
        ({"interpolation": ["bilinear"]}, None),
        ({"crop_mode": "squash"}, None),
        ({"input_size": [3, 224, 160]}, None),
        ({"input_size": [3, 224.7, 224.7]}, None),
        ({"input_size": [1, 64, 64]}, None),
        ({"crop_pct": 1.0}, "bicubic"),
        ({"crop_pct": 1.25}, None),
    ],
)
def test_how_images_are_resized_is_followed_or_nobody_says(tmp_path, changes, filter):
    """What timm does where nothing is said is bicubic; what is not done here is not taken for something that is."""
    write_timm(portable(pixels=None), tmp_path)
    edited(tmp_path, pretrained_cfg={"mean": [0.5] * 3, "std": [0.25] * 3} | changes)
    found = read_timm(tmp_path).pixels
    assert (found and found.filter) == filter


def test_an_older_layout_is_read(tmp_path):
    """All keys at the top, `labels` for names; and the prefix of transformers' wrapper before every tensor."""
    encoder = portable(classes=NAMES)
    write_timm(encoder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    old = config.pop("pretrained_cfg") | {"architecture": "resnet18", "labels": list(NAMES)}
    (tmp_path / "config.json").write_text(json.dumps(old))
    tensors, _ = safetensors_file.read(tmp_path / "model.safetensors")
    safetensors_file.write(tmp_path / "model.safetensors", {f"timm_model.{k}": v for k, v in tensors.items()})
    back = read_timm(tmp_path)
    same(back.backbone, encoder.backbone)
    assert back.classifier.names == NAMES and back.pixels == encoder.pixels


@pytest.mark.parametrize(("arch", "channels", "classes"), [("resnet18", 1, 0), ("resnet50", 3, 9)])
def test_what_timm_saves_is_read(tmp_path, arch, channels, classes):
    """`save_for_hf`: tensor by tensor, and the pixels that timm's own transforms make."""
    torchvision()
    timm = pytest.importorskip("timm", reason="timm is not installed")
    pytest.importorskip("huggingface_hub", reason="huggingface_hub, with which timm saves, is not installed")
    net = timm.create_model(arch, in_chans=channels, num_classes=classes)
    timm.models.save_for_hf(
        net, tmp_path, safe_serialization=True, model_config={"label_names": list("abcdefghi")[:classes]}
    )
    back = read_timm(tmp_path)
    theirs = {k: v.numpy() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    if classes:
        assert np.array_equal(back.classifier.weight, theirs.pop("fc.weight"))
        assert np.array_equal(back.classifier.bias, theirs.pop("fc.bias"))
        assert back.classifier.names == tuple("abcdefghi")
    else:
        assert back.classifier is None
    same(back.backbone, theirs)
    cfg = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    if len(cfg["mean"]) == channels:
        assert (back.pixels.size, back.pixels.filter) == (cfg["input_size"][1], cfg["interpolation"])
        assert back.pixels.resize == int(cfg["input_size"][1] / cfg["crop_pct"])
        assert (back.pixels.mean, back.pixels.std) == (tuple(cfg["mean"]), tuple(cfg["std"]))
    else:
        assert back.pixels is None and channels != 3
