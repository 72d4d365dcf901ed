"""Folders that timm opens ("local-dir:"), and transformers through its wrapper of timm; written here, and read back."""

import math
from pathlib import Path
from typing import Any

from moco_jax.checkpoints import folders
from moco_jax.checkpoints.backbones import feature_size, without_counts
from moco_jax.checkpoints.card import card
from moco_jax.checkpoints.folders import CONFIG, Json, shown
from moco_jax.checkpoints.messages import listed, one_line
from moco_jax.checkpoints.weights import Imported, Pixels, Portable
from moco_jax.config import ConfigError, Model
from moco_jax.data import crops

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")  # of ours that timm has
WIDTH = 64  # of the first stage: timm's stem has no other
# Arguments of timm's ResNet that leave the network in evaluation as it is; in_chans and num_classes show in shapes.
HARMLESS = ("in_chans", "num_classes", "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last")
WRAPPER = "timm_model."  # before every name, as some versions of transformers' wrapper save it


def check(portable: Portable) -> None:
    """Raises ConfigError where timm has no such network, or the tensors are not whole."""
    model = portable.model
    folders.check_stem(model, whose="timm's ResNets")
    if model.arch not in ARCHITECTURES:
        raise ConfigError(f"timm has no {model.arch}, only {', '.join(ARCHITECTURES)}; Hugging Face's format holds it")
    if model.width != WIDTH:
        raise ConfigError(
            f"timm's {model.arch} has {WIDTH} channels in its first stage, this encoder {model.width} (model.width); "
            "Hugging Face's format holds other widths"
        )
    folders.check_whole(portable)


def write_timm(portable: Portable, folder: Path) -> None:
    """Write model.safetensors, config.json and README.md for timm into an empty folder.

    Raises ConfigError before anything is written where timm has no such network.
    """
    check(portable)
    config: Json = {
        "architecture": portable.model.arch,
        "num_classes": 0 if portable.classifier is None else len(portable.classifier.bias),
        "num_features": feature_size(portable.model),
        "global_pool": "avg",
        "pretrained_cfg": _pretrained(portable),
    }
    if portable.channels != 3:
        config["model_args"] = {"in_chans": portable.channels}
    if portable.classifier is not None:  # named always: transformers gives 1000 classes without names ImageNet's
        config["label_names"] = folders.class_names(portable.classifier)
    config |= folders.ours(portable, pixels=portable.pixels is not None and not folders.usual(portable.pixels))
    folders.write(folder, config, folders.with_classifier(portable), card(portable, "timm"))


def _pretrained(portable: Portable) -> Json:
    out: Json = {
        "custom_load": False,
        "fixed_input_size": False,
        "num_classes": 0 if portable.classifier is None else len(portable.classifier.bias),
        "pool_size": None,
        "classifier": "fc",
    }
    if portable.channels == 3:  # where it is named, timm 1.0.16 draws a random first layer for other channels
        out["first_conv"] = "conv1"
    if portable.license is not None:
        out["license"] = portable.license
    if (p := portable.pixels) is not None:
        out |= {
            "input_size": [portable.channels, p.size, p.size],
            "interpolation": p.filter,
            "crop_mode": "center",
            "crop_pct": folders.crop_share(p.size, p.resize),
            "mean": list(p.mean),
            "std": list(p.std),
        }
    return out


def read_timm(folder: Path, data: bytes | None = None) -> Imported:
    """The encoder of a folder that timm, its wrapper in transformers, or `write_timm` wrote.

    Pixels are what timm's own transforms of the folder do; None where it does not say, or for other channels. `data` is
    the content of its model.safetensors, where that has been read already.

    Raises ConfigError naming file and key where it is not a plain ResNet, or not whole.
    """
    path = folder / CONFIG
    config = folders.read_json(path)
    cfg = config.get("pretrained_cfg", config)  # an older layout has all keys at the top
    arch, args = config.get("architecture"), config.get("model_args") or {}
    if not isinstance(cfg, dict) or not isinstance(args, dict):
        raise ConfigError(f"{path}: pretrained_cfg and model_args are objects of keys")
    if arch not in ARCHITECTURES:
        raise ConfigError(
            f"{path}: architecture is {shown(arch)}; {', '.join(ARCHITECTURES)} are read, as torchvision's"
        )
    _check_arguments(args, config.get("global_pool", "avg"), path)
    if cfg.get("label_offset"):
        raise ConfigError(f"{path}: pretrained_cfg.label_offset is {shown(cfg['label_offset'])}: only 0 is read")

    tensors = without_counts(folders.read_weights(folder, data))
    if tensors and all(name.startswith(WRAPPER) for name in tensors):
        tensors = {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}
    what = str(folder)
    labels = config.get("label_names") or cfg.get("label_names") or cfg.get("labels")
    backbone, classifier = folders.without_classifier(tensors, folders.named(labels, what=str(path)), what=what)
    model = Model(arch=str(arch), stem="imagenet", width=WIDTH)
    channels = folders.channels_of(backbone, what=what)
    folders.check_encoder(backbone, classifier, model, channels, what=what)
    if classifier is not None:
        classes = config.get("num_classes", cfg.get("num_classes"))
        if classes is not None and classes != len(classifier.bias):
            raise ConfigError(f"{path}: num_classes is {shown(classes)}, model.safetensors has {len(classifier.bias)}")
    pixels = folders.read_our_pixels(config, what=str(path)) or _pixels(cfg, channels, str(path))
    folders.check_pixels(pixels, channels, what=str(path))
    origin = folders.read_our_origin(config, what=str(path))
    return Imported(backbone, classifier, pixels, model, f"timm folder ({arch})", origin)


def _check_arguments(args: dict[str, Any], pool: Any, path: Path) -> None:
    """Refuse what makes another network of an architecture."""
    if pools := [p for p in (pool, args.get("global_pool", "avg")) if p != "avg"]:
        raise ConfigError(f"{path}: global_pool is {listed(pools)}; only 'avg' is read")
    if odd := sorted(set(args) - {*HARMLESS, "global_pool"}):
        key, value = one_line(odd[0], 60), shown(args[odd[0]])
        raise ConfigError(f"{path}: model_args.{key} is {value}, which may make another network: not read")


def _pixels(cfg: dict[str, Any], channels: int, what: str) -> Pixels | None:
    """What timm's own transforms do; None where mean or std are not said, or not of as many channels.

    None too where they do what is not done here: views that are not square, not of whole pixels, of other channels, not
    cut from the centre, or larger than what they are cut from.

    Of a network for other channels older timm saves the mean and std that the architecture has for three.
    """
    if "mean" not in cfg or "std" not in cfg:
        return None
    mean, std = folders.numbers(cfg, "mean", what=what), folders.numbers(cfg, "std", what=what)
    if (len(mean), len(std)) != (channels, channels):
        return None
    shape = folders.numbers(cfg, "input_size", what=what) if "input_size" in cfg else (channels, 224.0, 224.0)
    if len(shape) != 3 or not 1 <= min(shape) <= max(shape) <= folders.LARGEST:
        raise ConfigError(f"{what}: input_size is {shown(cfg['input_size'])}; channels, height and width are read")
    size, filter = int(shape[1]), str(cfg.get("interpolation") or "bicubic")
    share = folders.number(cfg, "crop_pct", 0.875, what=what, above=folders.SMALLEST)
    if shape != (channels, size, size) or share > 1:
        return None
    if (cfg.get("crop_mode") or "center") != "center" or filter not in crops.FILTERS:
        return None
    return Pixels(size, math.floor(size / share), "uint8", (0.0, 255.0), mean, std, filter)
