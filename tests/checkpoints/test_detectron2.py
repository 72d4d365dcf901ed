"""Detectron2's file: the released script's names and layout, what cannot be held, and the config that goes with it."""

import pickle

import numpy as np
import pytest

from moco_jax.checkpoints import detectron2
from moco_jax.checkpoints.backbones import shapes
from moco_jax.config import ConfigError, Model
from tests.checkpoints.portables import IMAGENET, NAMES, pixels, portable, same

ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype")}
ALLOWED |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}


class OnlyArrays(pickle.Unpickler):
    """A pickle of numpy arrays and plain values, or an error."""

    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def script(k: str) -> str:
    """The rule of detection/convert-pretrain-to-detectron2.py (facebookresearch/moco), line by line."""
    if "layer" not in k:
        k = "stem." + k
    for t in [1, 2, 3, 4]:
        k = k.replace(f"layer{t}", f"res{t + 1}")
    for t in [1, 2, 3]:
        k = k.replace(f"bn{t}", f"conv{t}.norm")
    k = k.replace("downsample.0", "shortcut")
    return k.replace("downsample.1", "shortcut.norm")


@pytest.mark.parametrize("arch", detectron2.DEPTHS)
def test_names_are_those_of_the_released_script(arch):
    """For every tensor of every architecture; no two become one."""
    names = list(shapes(Model(arch=arch, stem="imagenet"), 3))
    ours = [detectron2.detectron2_name(name) for name in names]
    assert ours == [script(name) for name in names] and len(set(ours)) == len(names)
    assert ours[0] == "stem.conv1.weight" and "res3.0.shortcut.norm.running_var" in ours


def test_the_file_is_the_scripts(tmp_path):
    """The three keys, numpy arrays of the backbone alone, nothing that runs code."""
    encoder = portable("resnet50", classes=NAMES)
    path = tmp_path / "out.pkl"
    detectron2.write(encoder, path)
    with path.open("rb") as file:
        content = OnlyArrays(file).load()
    assert list(content) == ["model", "__author__", "matching_heuristics"]
    assert content["__author__"] == "MOCO" and content["matching_heuristics"] is True
    same(content["model"], {script(name): value for name, value in encoder.backbone.items()})
    assert all(type(value) is np.ndarray and value.flags.c_contiguous for value in content["model"].values())


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda: portable("resnet_tiny"), "Detectron2 has no resnet_tiny"),
        (lambda: portable("resnet_tiny", stem="cifar"), "stem 'cifar' .*: --format=pth and --format=pth.tar hold it$"),
        (lambda: portable("resnet34", width=32), "Detectron2's resnet34 has 64 channels in its first stage"),
        (lambda: portable(width=32), "Detectron2's resnet18 has 64 channels in its first stage, this encoder 32"),
        (lambda: portable()._replace(channels=4), r"run: conv1.weight is \(64, 3, 7, 7\)"),
    ],
)
def test_what_detectron2_cannot_hold_is_refused_before_anything_is_written(tmp_path, encoder, message):
    """No file is left."""
    encoder = encoder()
    with pytest.raises(ConfigError, match=message):
        detectron2.write(encoder, tmp_path / "out.pkl")
    assert not list(tmp_path.iterdir())


def test_the_note_is_the_config_of_the_released_experiments():
    """RGB, ImageNet's mean and deviation times 255, no stride in the 1x1, all stages trained, by SyncBN."""
    note = detectron2.note(portable("resnet50", pixels=pixels()._replace(**IMAGENET)))
    lines = [line.split("#")[0].rstrip() for line in note.splitlines()]
    assert lines == [
        "MODEL:",
        "  PIXEL_MEAN: [123.675, 116.28, 103.53]",
        "  PIXEL_STD: [58.395, 57.12, 57.375]",
        "  BACKBONE:",
        "    FREEZE_AT: 0",
        "  RESNETS:",
        "    DEPTH: 50",
        "    STRIDE_IN_1X1: False",
        '    NORM: "SyncBN"',
        "INPUT:",
        '  FORMAT: "RGB"',
    ]


def test_the_note_says_what_else_differs_from_the_defaults():
    """Width, small networks, channels, values that begin elsewhere, and that nobody says."""
    note = detectron2.note(portable("resnet50", width=32))
    assert "STEM_OUT_CHANNELS: 32" in note and "WIDTH_PER_GROUP: 32" in note and "RES2_OUT_CHANNELS: 128" in note
    note = detectron2.note(portable("resnet34"))
    assert "DEPTH: 34" in note and "RES2_OUT_CHANNELS: 64" in note and "STEM_OUT_CHANNELS" not in note
    assert 'FORMAT: "L"' in detectron2.note(portable(channels=1))
    assert "13 channels" in detectron2.note(portable(channels=13))
    deep = pixels(1, dtype="uint16", range=(100.0, 1100.0))
    note = detectron2.note(portable(channels=1, pixels=deep))
    assert "PIXEL_MEAN: [400.0]" in note and "PIXEL_STD: [200.0]" in note
    assert "# PIXEL_MEAN, PIXEL_STD: nobody says" in detectron2.note(portable(pixels=None))
