"""Folders that Hugging Face's transformers open as a ResNet; written here, and read back."""

from pathlib import Path
from typing import Any

from moco_jax.checkpoints import folders
from moco_jax.checkpoints.backbones import expansion
from moco_jax.checkpoints.card import card
from moco_jax.checkpoints.folders import CONFIG, WEIGHTS, Json, shown
from moco_jax.checkpoints.huggingface_names import from_huggingface, to_huggingface
from moco_jax.checkpoints.weights import Imported, Pixels, Portable
from moco_jax.config import ConfigError, Model
from moco_jax.data import crops
from moco_jax.models.resnet import ARCHS, BasicBlock

PROCESSOR = "preprocessor_config.json"
WARPS = 384  # from this size on ConvNextImageProcessor stretches the image instead of cutting out its centre
# What transformers takes where config.json is silent.
DEFAULTS: Json = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
}
FIXED: Json = {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False}


def check(portable: Portable) -> None:
    """Raises ConfigError where transformers have no such network, or the tensors are not whole."""
    folders.check_stem(portable.model, whose="transformers' ResNets")
    folders.check_whole(portable)


def write_huggingface(portable: Portable, folder: Path) -> None:
    """Write model.safetensors, config.json, README.md and, where one can say it, preprocessor_config.json.

    With a classifier the folder is a `ResNetForImageClassification`, without one a `ResNetModel`. The folder exists
    and is empty. Raises ConfigError before anything is written where transformers have no such network.
    """
    check(portable)
    missing = _no_processor(portable)
    config = _config(portable) | folders.ours(portable, pixels=bool(missing))
    tensors = to_huggingface(folders.with_classifier(portable))
    folders.write(folder, config, tensors, card(portable, "transformers", missing=missing))
    if portable.pixels is not None and not missing:
        folders.write_json(folder / PROCESSOR, _processor(portable.pixels))


def _config(portable: Portable) -> Json:
    sizes, width = ARCHS[portable.model.arch].stage_sizes, portable.model.width
    out: Json = {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "num_channels": portable.channels,
        "embedding_size": width,
        "hidden_sizes": [width * 2**stage * expansion(portable.model) for stage in range(len(sizes))],
        "depths": list(sizes),
        "layer_type": "basic" if ARCHS[portable.model.arch].block is BasicBlock else "bottleneck",
        **FIXED,
    }
    if portable.classifier is not None:
        names = folders.class_names(portable.classifier)
        out["architectures"] = ["ResNetForImageClassification"]
        out["id2label"] = {str(i): name for i, name in enumerate(names)}
        out["label2id"] = {name: i for i, name in enumerate(names)}
    return out


def _no_processor(portable: Portable) -> str:
    """Why there is no preprocessor_config.json, as a sentence for the card; "" where there is one."""
    p, begin = portable.pixels, f"There is no {PROCESSOR}: "
    if p is None:
        return begin + "nobody says what it should hold."
    if not folders.usual(p):
        low, high = p.range
        return f"{begin}transformers' processors read 8-bit images, these are {p.dtype} of {low:g} to {high:g}."
    if portable.channels not in (1, 3):
        return f"{begin}transformers' processors take 1 or 3 channels, these images have {portable.channels}."
    if p.size >= WARPS:
        return f"{begin}from {WARPS} pixels on, ConvNextImageProcessor stretches images where this cuts out the centre."
    return ""


def cuts_elsewhere(portable: Portable) -> bool:
    """Whether the folder's processor cuts every image elsewhere than the encoder's own views are cut."""
    return portable.pixels is not None and not _no_processor(portable) and folders.cut_elsewhere(portable.pixels)


def _processor(pixels: Pixels) -> Json:
    return {
        "image_processor_type": "ConvNextImageProcessor",  # what transformers use for ResNets
        "do_resize": True,
        "size": {"shortest_edge": pixels.size},
        "crop_pct": folders.crop_share(pixels.size, pixels.resize),
        "resample": int(crops.FILTERS[pixels.filter]),  # as Pillow numbers it
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
    }


def read_huggingface(folder: Path, data: bytes | None = None) -> Imported:
    """The encoder of a folder that transformers or `write_huggingface` wrote.

    Pixels are what a ConvNextImageProcessor of the folder does; None where there is none, or it does something else.
    `data` is the content of its model.safetensors, where that has been read already.
    Raises ConfigError naming file and key where it is not a ResNet as here, or not whole.
    """
    path = folder / CONFIG
    config = folders.read_json(path)
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise ConfigError(f"{path}: {key} is {shown(config[key])}, which is another network; {value!r} is read")
    model = _model(config, path)
    what = str(folder)
    tensors = from_huggingface(folders.read_weights(folder, data))
    names = folders.named(config.get("id2label"), what=f"{path}: id2label") if "fc.bias" in tensors else None
    backbone, classifier = folders.without_classifier(tensors, names, what=what)
    channels = config.get("num_channels", DEFAULTS["num_channels"])
    if channels != folders.channels_of(backbone, what=what):
        raise ConfigError(
            f"{path}: num_channels is {shown(channels)}, the first convolution takes "
            f"{backbone['conv1.weight'].shape[1]}"
        )
    folders.check_encoder(backbone, classifier, model, channels, what=what)
    if classifier is not None and len(labels := config.get("id2label") or classifier.bias) != len(classifier.bias):
        raise ConfigError(f"{path}: id2label has {len(labels)} classes, {WEIGHTS} has {len(classifier.bias)}")
    pixels = _pixels(folder / PROCESSOR) or folders.read_our_pixels(config, what=str(path))
    folders.check_pixels(pixels, channels, what=str(folder / PROCESSOR))
    origin = folders.read_our_origin(config, what=str(path))
    kind = "ResNetModel" if classifier is None else "ResNetForImageClassification"
    return Imported(backbone, classifier, pixels, model, f"Hugging Face {kind} folder", origin)


def _model(config: Json, path: Path) -> Model:
    """The architecture that config.json describes."""
    said = {key: config.get(key, default) for key, default in DEFAULTS.items()}
    depths, width, kind = said["depths"], said["embedding_size"], said["layer_type"]
    kinds = {
        name: (list(a.stage_sizes), "basic" if a.block is BasicBlock else "bottleneck") for name, a in ARCHS.items()
    }
    arch = next((name for name, of in kinds.items() if of == (depths, kind)), None)
    if arch is None:
        raise ConfigError(f"{path}: depths {shown(depths)} of layer_type {shown(kind)} are none of {', '.join(ARCHS)}")
    if not isinstance(width, int) or width < 1:
        raise ConfigError(f"{path}: embedding_size is {shown(width)}; a whole number above 0 is read")
    model = Model(arch=arch, stem="imagenet", width=width)
    wanted = [width * 2**stage * expansion(model) for stage in range(len(kinds[arch][0]))]
    if said["hidden_sizes"] != wanted:
        raise ConfigError(
            f"{path}: hidden_sizes are {shown(said['hidden_sizes'])}; {arch} of that width has {shown(wanted)}"
        )
    return model


def _pixels(path: Path) -> Pixels | None:
    """What a ConvNextImageProcessor's file says; None where there is none, or it is not that, or leaves steps out."""
    if not path.exists():
        return None
    said, what = folders.read_json(path), str(path)
    kind = str(said.get("image_processor_type") or said.get("feature_extractor_type"))
    scale = folders.number(said, "rescale_factor", 1 / 255, what=what)
    steps = all(said.get(step, True) is True for step in ("do_resize", "do_rescale", "do_normalize"))
    resample = said.get("resample", crops.FILTERS["bicubic"])
    filter = next((name for name, number in crops.FILTERS.items() if number == resample), None)
    if filter is None or not kind.startswith("ConvNext") or not steps or abs(255 * scale - 1) > 1e-6:
        return None
    edge: Any = said.get("size")
    edge = edge.get("shortest_edge") if isinstance(edge, dict) else edge  # a number in files of older versions
    share = folders.number(said, "crop_pct", 224 / 256, what=what, above=folders.SMALLEST)
    if not isinstance(edge, int) or not 1 <= edge < WARPS or share > 1:
        return None
    mean, std = (folders.numbers(said, key, what=what) for key in ("image_mean", "image_std"))
    return Pixels(edge, int(edge / share), "uint8", (0.0, 255.0), mean, std, filter)
