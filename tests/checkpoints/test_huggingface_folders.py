"""Folders of transformers: what they hold, what cannot be held, and every way in which a folder can be wrong."""

import json

import numpy as np
import pytest

from moco_jax.checkpoints import safetensors_file
from moco_jax.checkpoints.huggingface_folders import read_huggingface, write_huggingface
from moco_jax.config import ConfigError
from tests.checkpoints.portables import NAMES, pixels, portable, same, torchvision

pytest.importorskip("safetensors", reason="safetensors is an extra")


def edited(path, **changes):
    """A JSON file with keys changed."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("encoder", "processor"),
    [
        (lambda: portable(width=8), True),
        (lambda: portable("resnet50", channels=1, width=16, classes=NAMES), True),
        (lambda: portable("resnet_tiny", width=8, classes=7), True),
        (lambda: portable(channels=13, width=8), False),
        (lambda: portable(width=8, pixels=pixels(dtype="uint16", range=(0.0, 4095.0))), False),
        (lambda: portable(width=8, pixels=pixels(size=384, resize=400)), False),
        (lambda: portable(width=8, pixels=None), False),
        (lambda: portable(width=8, pixels=pixels(filter="bicubic")), True),
        (lambda: portable(width=8, pixels=pixels(size=383, resize=400)), True),
    ],
    ids=["plain", "gray with classes", "tiny", "bands", "16 bits", "large", "no pixels", "bicubic", "just not large"],
)
def test_there_and_back_is_the_same(tmp_path, encoder, processor):
    """Tensors, classifier with names or without, pixels of any kind, architecture and width."""
    encoder = encoder()
    write_huggingface(encoder, tmp_path)
    files = {"config.json", "model.safetensors", "README.md"} | ({"preprocessor_config.json"} if processor else set())
    assert {p.name for p in tmp_path.iterdir()} == files
    assert processor != ("There is no preprocessor_config.json: " in (tmp_path / "README.md").read_text())
    back = read_huggingface(tmp_path)
    same(back.backbone, encoder.backbone)
    assert (back.model.arch, back.model.stem) == (encoder.model.arch, "imagenet")
    assert back.model.width == encoder.model.width and back.pixels == encoder.pixels
    kind = "ResNetModel" if encoder.classifier is None else "ResNetForImageClassification"
    assert back.layout == f"Hugging Face {kind} folder"
    assert (back.classifier is None) == (encoder.classifier is None)
    if back.classifier is not None:
        assert back.classifier.names == encoder.classifier.names
        assert np.array_equal(back.classifier.weight, encoder.classifier.weight)
        assert np.array_equal(back.classifier.bias, encoder.classifier.bias)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda: portable(stem="cifar"), "stem 'cifar' .*: --format=pth and --format=pth.tar hold it$"),
        (lambda: portable(width=8, pixels=pixels(2)), "do not fit 3 channels"),
        (lambda: portable(width=8)._replace(channels=4), r"run: conv1.weight is \(8, 3, 7, 7\)"),
    ],
)
def test_what_transformers_cannot_hold_is_refused_before_anything_is_written(tmp_path, encoder, message):
    """The folder stays empty."""
    encoder = encoder()
    with pytest.raises(ConfigError, match=message):
        write_huggingface(encoder, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck is True, which is another network"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"depths": [2, 2, 2]}, r"depths \[2, 2, 2\] of layer_type 'basic' are none of"),
        ({"depths": [3, 4, 6, 3]}, "resnet34 of width 8 needs layer1.2.conv1.weight"),
        ({"layer_type": "bottleneck"}, "of layer_type 'bottleneck' are none of"),
        ({"embedding_size": 16}, "hidden_sizes are"),
        (
            {"embedding_size": 10**300, "hidden_sizes": 10**300},
            r"hidden_sizes are 10{56}\.\.\.; .* has \[10{55}\.\.\.$",
        ),
        ({"embedding_size": "8"}, "embedding_size is '8'"),
        ({"hidden_sizes": [8, 16, 32, 65]}, r"hidden_sizes are \[8, 16, 32, 65\]; resnet18 of that width has"),
        ({"num_channels": 1}, "num_channels is 1, the first convolution takes 3"),
        ({"id2label": {"0": "a"}}, "1 class names for 5 classes"),
        ({"id2label": {"0": "LABEL_0"}}, "id2label has 1 classes, model.safetensors has 5"),
        ({"id2label": {"1": "a"}}, "numbers are not 0 to 0"),
    ],
)
def test_a_config_of_something_else_is_refused_by_key(tmp_path, changes, message):
    """In one line that names the key."""
    write_huggingface(portable(width=8, classes=NAMES), tmp_path)
    read_huggingface(tmp_path)
    edited(tmp_path / "config.json", **changes)
    with pytest.raises(ConfigError, match=rf"^[^\n]*{message}[^\n]*$"):
        read_huggingface(tmp_path)


def test_keys_that_are_not_there_have_the_librarys_defaults(tmp_path):
    """transformers' ResNetConfig() is a ResNet-50 for 3 channels: so is a config.json of its type alone."""
    encoder = portable("resnet50")
    write_huggingface(encoder, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    same(read_huggingface(tmp_path).backbone, encoder.backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("resnet.embedder.embedder.normalization.bias"), "needs bn1.bias"),
        (lambda t: t.update(extra=np.zeros(1)), "no place for extra"),
        (lambda t: t.update({"resnet.embedder.embedder.normalization.bias": np.zeros(9)}), r"bn1.bias is \(9,\)"),
        (lambda t: t.pop("resnet.embedder.embedder.convolution.weight"), "no first convolution"),
        (lambda t: t.pop("classifier.1.bias"), "there is fc.weight alone"),
        (
            lambda t: t.update({"classifier.1.bias": np.zeros(4)}),
            r"the classifier is .* with bias .*; on [0-9]+ features",
        ),
        (lambda t: t.clear(), "no first convolution"),
    ],
)
def test_tensors_of_something_else_are_refused_by_name(tmp_path, change, message):
    """Too few, too many, of another shape, half a classifier, none."""
    write_huggingface(portable(width=8, classes=NAMES), tmp_path)
    tensors, _ = safetensors_file.read(tmp_path / "model.safetensors")
    change(tensors)
    safetensors_file.write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ConfigError, match=rf"^[^\n]*{message}[^\n]*$"):
        read_huggingface(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": [0.5]}, "do not fit 3 channels"),
        ({"image_mean": 0.5}, "image_mean is 0.5"),
        ({"image_std": [0.5, 0.5, 0]}, "are those of no images"),
        ({"crop_pct": "a"}, "crop_pct is 'a'"),
        ({"crop_pct": 5e-324}, "crop_pct is 5e-324; a number above 0.01"),
        ({"rescale_factor": 10**400}, r"rescale_factor is 10{56}\.\.\.; a number"),
        ({"rescale_factor": None}, "rescale_factor is None"),
    ],
)
def test_a_processor_that_is_wrong_is_refused(tmp_path, changes, message):
    """In one line that names the key."""
    write_huggingface(portable(width=8), tmp_path)
    edited(tmp_path / "preprocessor_config.json", **changes)
    with pytest.raises(ConfigError, match=rf"^[^\n]*preprocessor_config.json: [^\n]*{message}[^\n]*$"):
        read_huggingface(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_processor_type": "ViTImageProcessor"},
        {"do_normalize": False},
        {"do_resize": False},
        {"rescale_factor": 1.0},
        {"size": {"height": 64, "width": 64}},
        {"size": {"shortest_edge": 384}},
        {"resample": 1},
        {"crop_pct": 1.25},
        {"resample": [2]},
    ],
)
def test_a_processor_that_does_something_else_is_nobody_saying(tmp_path, changes):
    """What cannot be said as a centre view of 8-bit images is not guessed."""
    write_huggingface(portable(width=8), tmp_path)
    edited(tmp_path / "preprocessor_config.json", **changes)
    assert read_huggingface(tmp_path).pixels is None


def test_a_processor_of_an_older_version_is_read(tmp_path):
    """The kind was called a feature extractor, the size was a number."""
    encoder = portable(width=8)
    write_huggingface(encoder, tmp_path)
    edited(
        tmp_path / "preprocessor_config.json",
        image_processor_type=None,
        feature_extractor_type="ConvNextFeatureExtractor",
        size=64,
    )
    assert read_huggingface(tmp_path).pixels == encoder.pixels


@pytest.mark.parametrize("classes", [None, 4])
def test_what_transformers_save_is_read(tmp_path, classes):
    """`save_pretrained` of network and processor: tensor by tensor."""
    torchvision()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ResNetConfig(
        layer_type="basic", depths=[2, 2, 2, 2], embedding_size=8, hidden_sizes=[8, 16, 32, 64], num_channels=2
    )
    config.num_labels = classes or 2
    kind = transformers.ResNetModel if classes is None else transformers.ResNetForImageClassification
    net = kind(config)
    net.save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(
        size={"shortest_edge": 96}, crop_pct=0.75, image_mean=[0.1, 0.2], image_std=[0.3, 0.4]
    ).save_pretrained(tmp_path)
    back = read_huggingface(tmp_path)
    base = net if classes is None else net.resnet
    assert np.array_equal(back.backbone["conv1.weight"], base.embedder.embedder.convolution.weight.detach().numpy())
    last = base.encoder.stages[3].layers[1].layer[1].normalization.weight.detach().numpy()
    assert np.array_equal(back.backbone["layer4.1.bn2.weight"], last)
    assert len(back.backbone) == sum(not k.endswith("num_batches_tracked") for k in base.state_dict())
    assert back.pixels[:2] == (96, 128) and (back.pixels.mean, back.pixels.filter) == ((0.1, 0.2), "bicubic")
    assert (back.classifier is None) == (classes is None)
    if back.classifier is not None:
        assert np.array_equal(back.classifier.weight, net.classifier[1].weight.detach().numpy())
        assert back.classifier.names is None
