"""timm and transformers open what is written, and compute torchvision's features and the classifier's logits."""

import sys

import numpy as np
import pytest

from moco_jax.checkpoints import libraries, reading
from moco_jax.checkpoints.huggingface_folders import read_huggingface, write_huggingface
from moco_jax.checkpoints.timm_folders import read_timm, write_timm
from moco_jax.config import ConfigError
from tests.checkpoints.portables import (
    NAMES,
    features_in_torchvision,
    gap,
    images,
    logits,
    pixels,
    portable,
    same,
    torchvision,
)
from tests.snippets import snippets

pytest.importorskip("safetensors", reason="safetensors is an extra")

CLOSE = 1e-5  # over the largest feature of an image; float32 sums in another order
ENCODERS = [("resnet18", 3), ("resnet18", 1), ("resnet18", 13), pytest.param("resnet50", 3, marks=pytest.mark.slow)]
WRITE = {"timm": write_timm, "transformers": write_huggingface}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing may be asked of the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def library(request):
    """One of the libraries, imported after torchvision; or skip."""
    torchvision()
    return pytest.importorskip(request.param, reason=f"{request.param} is not installed")


@pytest.mark.parametrize("library", ["timm", "transformers"], indirect=True)
@pytest.mark.parametrize(("arch", "channels"), ENCODERS)
def test_features_are_torchvisions(tmp_path, library, arch, channels):
    """For three channels, for one and for thirteen; basic blocks and bottlenecks."""
    encoder, x = portable(arch, channels=channels), images(channels)
    WRITE[library.__name__](encoder, tmp_path)
    wanted = features_in_torchvision(encoder, x)
    found = libraries.opened(tmp_path)(x)
    assert found.dtype == np.float32
    assert gap(found, wanted) < CLOSE
    assert gap(wanted[::-1], wanted) > 100 * CLOSE  # images differ, so that the bound says something


def test_transformers_open_other_widths_and_three_stages(tmp_path):
    """What timm cannot hold, beside the same network of our own in float64 by torch's functions alone."""
    torchvision()
    pytest.importorskip("transformers", reason="transformers is not installed")
    encoder, x = portable("resnet_tiny", width=16), images()
    write_huggingface(encoder, tmp_path)
    assert gap(libraries.opened(tmp_path)(x), _tiny(encoder.backbone, x)) < CLOSE


def _tiny(backbone, x):
    """A ResNet of three basic blocks, written out."""
    import torch
    from torch.nn import functional as F

    t = {name: torch.from_numpy(value).double() for name, value in backbone.items()}

    def conv(x, name, stride):
        return F.conv2d(x, t[f"{name}.weight"], stride=stride, padding=t[f"{name}.weight"].shape[2] // 2)

    def norm(x, name):
        keys = (f"{name}.{leaf}" for leaf in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *(t[key] for key in keys))

    y = F.max_pool2d(F.relu(norm(conv(torch.from_numpy(x).double(), "conv1", 2), "bn1")), 3, 2, 1)
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        at = f"layer{stage}.0"
        z = F.relu(norm(conv(y, f"{at}.conv1", stride), f"{at}.bn1"))
        z = norm(conv(z, f"{at}.conv2", 1), f"{at}.bn2")
        y = F.relu(z + (y if stage == 1 else norm(conv(y, f"{at}.downsample.0", stride), f"{at}.downsample.1")))
    return y.mean((2, 3)).float().numpy()


@pytest.mark.parametrize("channels", [3, 13])
def test_transformers_wrapper_of_timm_opens_the_folder(tmp_path, channels):
    """AutoModel, by config.json alone; what it saves is read back, tensor by tensor."""
    torchvision()
    pytest.importorskip("timm", reason="timm is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import torch

    encoder, x = portable(channels=channels), images(channels)
    write_timm(encoder, tmp_path)
    net, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        found = net.eval()(torch.from_numpy(x)).pooler_output.numpy()
    assert gap(found, features_in_torchvision(encoder, x)) < CLOSE
    net.save_pretrained(tmp_path / "saved")
    back = read_timm(tmp_path / "saved")
    same(back.backbone, encoder.backbone)
    assert back.classifier is None and back.pixels == encoder.pixels


@pytest.mark.parametrize("classes", [NAMES, 1000], ids=["names", "1000 without"])
def test_logits_and_names_arrive(tmp_path, classes):
    """In timm, in transformers, and through its wrapper, where 1000 classes without names do not become ImageNet's."""
    torchvision()
    timm = pytest.importorskip("timm", reason="timm is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import torch

    encoder, x = portable(classes=classes), images()
    wanted = logits(encoder, features_in_torchvision(encoder, x))
    for kind, write in WRITE.items():
        (tmp_path / kind).mkdir()
        write(encoder, tmp_path / kind)
    names = list(NAMES) if classes is NAMES else [f"LABEL_{i}" for i in range(1000)]
    with torch.no_grad():
        net = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        assert gap(net(torch.from_numpy(x)).numpy(), wanted) < CLOSE
        for kind in WRITE:
            net = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / kind).eval()
            assert gap(net(torch.from_numpy(x)).logits.numpy(), wanted) < CLOSE
            assert [net.config.id2label[i] for i in range(len(names))] == names
    assert gap(libraries.opened(tmp_path / "timm")(x), features_in_torchvision(encoder, x)) < CLOSE
    net.save_pretrained(tmp_path / "saved")
    back = read_huggingface(tmp_path / "saved")
    same(back.backbone, encoder.backbone)
    assert np.array_equal(back.classifier.weight, encoder.classifier.weight)
    assert back.classifier.names == encoder.classifier.names


@pytest.mark.parametrize(("channels", "filter"), [(1, "bilinear"), (3, "bilinear"), (3, "bicubic")])
def test_both_libraries_prepare_images_as_the_card_says(tmp_path, channels, filter):
    """Their transforms of a large sharp image are ours to the rounding of a resized 8-bit value, written and read."""
    torchvision()
    timm = pytest.importorskip("timm", reason="timm is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from PIL import Image

    from moco_jax.data.crops import center

    encoder = portable(channels=channels, pixels=pixels(channels, size=64, resize=73, filter=filter))
    stored = np.random.default_rng(0).integers(60, 190, (150, 201, channels), np.uint8)
    view = center(stored, resize=73, size=64, filter=filter).transpose(2, 0, 1) / 255
    mean, std = (np.reshape(v, (-1, 1, 1)) for v in (encoder.pixels.mean, encoder.pixels.std))
    wanted = (view - mean) / std
    picture = Image.fromarray(stored if channels == 3 else stored[..., 0])
    for kind, write in WRITE.items():
        (tmp_path / kind).mkdir()
        write(encoder, tmp_path / kind)
        assert reading.read(tmp_path / kind).pixels == encoder.pixels
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True))
    by_timm = timm.data.create_transform(**config, is_training=False)(picture).numpy()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "transformers")
    by_transformers = processor(picture, return_tensors="pt")["pixel_values"][0].numpy()
    for found in (by_timm, by_transformers):
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < 2.01 / 255 / min(encoder.pixels.std)  # two levels of 256
    other = center(stored, resize=73, size=64, filter={"bilinear": "bicubic", "bicubic": "bilinear"}[filter])
    assert np.abs(other.transpose(2, 0, 1) / 255 - view).max() > 8 / 255  # the other filter would show


@pytest.mark.parametrize("library", ["timm", "transformers"], indirect=True)
@pytest.mark.parametrize("classes", [None, NAMES], ids=["features", "logits"])
def test_the_card_is_run(tmp_path, library, classes):
    """Its snippet, with the folder filled in, gives features of the size it says, and logits."""
    encoder = portable(classes=classes)
    WRITE[library.__name__](encoder, tmp_path)
    ((heading, code),) = snippets((tmp_path / "README.md").read_text())
    names = {}
    exec(code.replace("path/to/this/folder", str(tmp_path)), names)
    assert heading == "Use" and names["features"].shape == (1, 512) and "# (n, 512)" in code
    assert ("logits" in names) == (classes is not None)
    if classes is not None:
        assert names["logits"].shape == (1, 5) and "# (n, 5)" in code


@pytest.mark.parametrize("missing", ["timm", "transformers"])
def test_without_the_library_there_are_no_features(tmp_path, monkeypatch, missing):
    """Words, not an error: the folder is written all the same."""
    WRITE[missing](portable(), tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    assert libraries.opened(tmp_path) == f"{missing} is not installed"


@pytest.mark.parametrize("library", ["timm", "transformers"])
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            "raise RuntimeError('operator torchvision::nms\\ndoes not exist')",
            "RuntimeError: operator torchvision::nms does",
        ),
        ("raise OSError('libcudart.so.12: no such file')", "OSError: libcudart.so.12"),
        ("raise AttributeError('_ARRAY_API not found')", "AttributeError: _ARRAY_API"),
        ("import a_module_that_is_nowhere", "ModuleNotFoundError: No module named 'a_module_that_is_nowhere'"),
    ],
)
def test_a_library_that_does_not_import_is_said_with_its_reason(tmp_path, monkeypatch, library, broken, said):
    """On one line: one that was built for another torch, or lacks what it needs, is no reason for a traceback."""
    (tmp_path / f"{library}.py").write_text(broken)
    (tmp_path / "folder").mkdir()
    WRITE[library](portable(), tmp_path / "folder")
    for name in [n for n in sys.modules if n.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    found = libraries.opened(tmp_path / "folder")
    assert found.startswith(f"{library} is installed and does not import ({said}") and "\n" not in found


def test_transformers_may_not_fill_in_what_is_missing(tmp_path):
    """The library draws a missing tensor at random and warns; here that is an error."""
    torchvision()
    pytest.importorskip("transformers", reason="transformers is not installed")
    from moco_jax.checkpoints import safetensors_file

    write_huggingface(portable(width=8), tmp_path)
    tensors, _ = safetensors_file.read(tmp_path / "model.safetensors")
    del tensors["embedder.embedder.normalization.bias"]
    safetensors_file.write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ConfigError, match="without .*embedder.embedder.normalization.bias"):
        libraries.opened(tmp_path)
