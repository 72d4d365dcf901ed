"""A backbone as Detectron2's ResNets load it: names and file of the released conversion script, and what to configure.

The file is a pickle, Detectron2's own format for weights: it is written here and never read. Written beside numpy 2,
it is read beside numpy 1.26 or newer, as any pickle of arrays is.
"""

import json
import pickle
import re
from pathlib import Path

import numpy as np

from moco_jax.checkpoints.backbones import without_counts
from moco_jax.checkpoints.folders import check_stem, check_whole
from moco_jax.checkpoints.weights import Portable
from moco_jax.config import ConfigError

DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}


def detectron2_name(name: str) -> str:
    """The name in a Detectron2 ResNet of a backbone's tensor in torchvision.

    Source: detection/convert-pretrain-to-detectron2.py of the released code.
    """
    if not name.startswith("layer"):
        name = "stem." + name
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def check(portable: Portable) -> None:
    """Raises ConfigError where `build_resnet_backbone` makes no such network, or the tensors are not whole."""
    model = portable.model
    check_stem(model, whose="Detectron2's ResNets")
    if model.arch not in DEPTHS:
        raise ConfigError(f"Detectron2 has no {model.arch}, only {', '.join(DEPTHS)}")
    if DEPTHS[model.arch] < 50 and model.width != 64:
        raise ConfigError(
            f"Detectron2's {model.arch} has 64 channels in its first stage, this encoder {model.width} (model.width)"
        )
    check_whole(portable)


def write(portable: Portable, path: Path) -> None:
    """Write the backbone, without head and classifier, as a pickle of numpy arrays for MODEL.WEIGHTS.

    Raises ConfigError before anything is written where Detectron2 has no such network.
    """
    check(portable)
    tensors = without_counts(portable.backbone)
    model = {detectron2_name(name): np.array(tensor, order="C") for name, tensor in tensors.items()}
    content = {"model": model, "__author__": "MOCO", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=4))  # arrays of any size; Python 3.4 and later


def note(portable: Portable, weights: str = "") -> str:
    """The YAML that a Detectron2 config must have for these weights, since its defaults are others.

    `weights` is the name of their file, for MODEL.WEIGHTS.
    """
    depth, width = DEPTHS[portable.model.arch], portable.model.width
    lines = ["MODEL:", *([f"  WEIGHTS: {json.dumps(weights)}"] if weights else [])]  # JSON is YAML
    if (p := portable.pixels) is None:
        lines.append("  # PIXEL_MEAN, PIXEL_STD: nobody says how images were standardised for this encoder")
    else:
        low, high = p.range
        lines.append(f"  PIXEL_MEAN: {[round(low + m * (high - low), 6) for m in p.mean]}")
        lines.append(f"  PIXEL_STD: {[round(s * (high - low), 6) for s in p.std]}")
    lines += [
        "  BACKBONE:",
        "    FREEZE_AT: 0  # train all stages, as published; the default 2 keeps the first ones",
        "  RESNETS:",
        f"    DEPTH: {depth}",
        "    STRIDE_IN_1X1: False  # the default strides elsewhere: another network",
        '    NORM: "SyncBN"  # "BN" on one GPU; the default FrozenBN never adapts the running statistics',
    ]
    if depth < 50:
        lines.append("    RES2_OUT_CHANNELS: 64")
    elif width != 64:
        lines += [
            f"    STEM_OUT_CHANNELS: {width}",
            f"    WIDTH_PER_GROUP: {width}",
            f"    RES2_OUT_CHANNELS: {4 * width}",
        ]
    lines += _order(portable)
    return "\n".join(lines) + "\n"


def _order(portable: Portable) -> list[str]:
    if portable.channels == 3:
        return ["INPUT:", '  FORMAT: "RGB"  # the default BGR swaps the channels']
    if portable.channels == 1:
        return ["INPUT:", '  FORMAT: "L"']
    return [f"# INPUT.FORMAT knows no {portable.channels} channels: read such images in a DatasetMapper of your own"]
