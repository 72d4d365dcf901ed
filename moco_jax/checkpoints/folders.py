"""What folders of timm and of Hugging Face have in common: config.json, model.safetensors, README.md, pixels.

Nothing that a file names is imported, and nothing here reads a pickle.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax.checkpoints import backbones, messages, safetensors_file, weights
from moco_jax.checkpoints.backbones import with_counts
from moco_jax.checkpoints.messages import listed, one_line
from moco_jax.checkpoints.weights import Classifier, Origin, Pixels, Portable, Tensors
from moco_jax.config import ConfigError, Model
from moco_jax.data import crops

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
DTYPES, LARGEST = ("uint8", "uint16", "float32"), 2**14  # of images as stored; pixels of a side
OURS = "moco_jax"  # the key of config.json for what the libraries' own fields cannot say
LONGEST = 4000  # characters of where a folder comes from
LEAST_STD, MOST_MEAN = 1e-12, 1e6  # of values mapped to 0..1: beyond them no images were measured
SMALLEST = 0.01  # crop_pct: a share of the resized side, and not so small that no side is large enough
NAMELESS = "LABEL_{}"  # what transformers calls a class without a name

Json = dict[str, Any]


def library(folder: Path) -> str:
    """Whose folder it is, "timm" or "huggingface", by its config.json.

    Raises ConfigError where there is none that can be read, or where it is of another network.
    """
    config = read_json(folder / CONFIG)
    kind = config.get("model_type")
    if kind == "resnet":
        return "huggingface"
    if "architecture" in config and kind in (None, "timm_wrapper"):
        return "timm"
    said = (
        f'model_type {shown(kind)}, where "resnet" is read' if kind else "neither a model_type nor timm's architecture"
    )
    raise ConfigError(f"{folder / CONFIG} has {said}: no folder of a ResNet of Hugging Face or of timm")


def read_json(path: Path) -> Json:
    """A JSON file that holds one object; raises ConfigError naming the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # bytes that are no text, and text that is no JSON
        raise ConfigError(f"{path} is no JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a JSON {type(found).__name__}, not an object of keys")
    return found


def read_weights(folder: Path, data: bytes | None = None) -> Tensors:
    """The tensors of model.safetensors; raises ConfigError where that file is missing, or is none.

    `data` is its content, where that has been read already.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise ConfigError(
            f"{folder} has no {WEIGHTS}: weights in other files of such a folder are not read; save the model again "
            "with safe serialization, in one file"
        )
    return safetensors_file.read(path, data)[0]


def shown(value: Any) -> str:
    """A value of a stranger's file as part of a message: a number may have thousands of digits."""
    return one_line(repr(value), 60)


def write(folder: Path, config: Json, tensors: Tensors, card: str) -> None:
    """Write config.json, model.safetensors with torch's counts of batches, and README.md into a folder that exists."""
    safetensors_file.write(folder / WEIGHTS, with_counts(tensors))
    write_json(folder / CONFIG, config)
    (folder / CARD).write_text(card, encoding="utf-8")


def write_json(path: Path, content: Json) -> None:
    """Write an object as the libraries do: two spaces, a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def with_classifier(portable: Portable) -> Tensors:
    """The backbone and `fc.weight`, `fc.bias` where there is a classifier."""
    if portable.classifier is None:
        return portable.backbone
    return portable.backbone | {"fc.weight": portable.classifier.weight, "fc.bias": portable.classifier.bias}


def without_classifier(
    tensors: Tensors, names: tuple[str, ...] | None, *, what: str
) -> tuple[Tensors, Classifier | None]:
    """The backbone and the classifier of tensors under torchvision's names.

    Raises ConfigError where a classifier is half there.
    """
    rest, half = dict(tensors), [name for name in ("fc.weight", "fc.bias") if name in tensors]
    if not half:
        return rest, None
    if len(half) == 1:
        raise ConfigError(f"{what}: of a classifier's weight and bias there is {half[0]} alone")
    return rest, Classifier(rest.pop("fc.weight"), rest.pop("fc.bias"), names)


def class_names(classifier: Classifier) -> list[str]:
    """Names for the classes: their own, or those that mean that nobody says."""
    rows = len(classifier.bias)
    return list(classifier.names) if classifier.names is not None else [NAMELESS.format(i) for i in range(rows)]


def named(labels: Any, *, what: str) -> tuple[str, ...] | None:
    """Class names of a list, or of an object from number to name; None where nobody says.

    Raises ConfigError where they are neither, or numbers are missing.
    """
    if isinstance(labels, dict):
        if set(labels) != {str(i) for i in range(len(labels))}:
            raise ConfigError(f"{what}: the classes' numbers are not 0 to {len(labels) - 1}: {listed(sorted(labels))}")
        labels = [labels[str(i)] for i in range(len(labels))]
    if not labels:
        return None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"{what}: class names are a list of texts, or an object from number to text")
    return None if labels == [NAMELESS.format(i) for i in range(len(labels))] else tuple(labels)


def usual(pixels: Pixels) -> bool:
    """Whether 0..1 are the 8 bits 0..255, which is all that the libraries' own fields can say."""
    return pixels.dtype == "uint8" and pixels.range == (0.0, 255.0)


def crop_share(size: int, resize: int) -> float:
    """`crop_pct` of both libraries: they resize to floor(size / crop_pct), and rounding must not make that one less."""
    share = size / resize
    return share if math.floor(size / share) == resize else float(np.nextafter(share, 0.0))


def cut_elsewhere(pixels: Pixels) -> bool:
    """Whether the processor of transformers cuts every image one pixel further up or left than is done here.

    It halves what exceeds the view and rounds down, where torchvision, and we, round a half to the even number.
    """
    return (pixels.resize - pixels.size) % 4 == 3


def licence(portable: Portable) -> str:
    """What is known of the licence, in sentences: the one given at conversion, and what came with the weights."""
    note, given = portable.license_note, portable.license
    said = [] if given is None or (given == "other" and note) else [f"{given}, as given at conversion."]
    return " ".join([*said, *([note] if note else [])])


def ours(portable: Portable, *, pixels: bool) -> Json:
    """The key of config.json that is read back, and that the libraries ignore: origin, licence, `pixels` in full."""
    kept: Json = {"origin": Origin(portable.origin, licence(portable))._asdict()}
    if pixels and portable.pixels is not None:
        kept["pixels"] = portable.pixels._asdict()
    return {OURS: kept}


def read_our_origin(config: Json, *, what: str) -> Origin | None:
    """What `ours` wrote of where weights come from, or None; raises ConfigError where it is there and not whole."""
    said = _ours(config, "origin", what)
    if said is None:
        return None
    texts = [said.get(name) if isinstance(said, dict) else None for name in Origin._fields]
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{what}: {OURS}.origin is not as it was written: it holds {' and '.join(Origin._fields)}")
    return Origin(*(messages.one_line(text, LONGEST) for text in texts if text is not None))


def _ours(config: Json, name: str, what: str) -> Any:
    """What stands under a name of our key; None where there is neither."""
    if not isinstance(found := config.get(OURS, {}), dict):
        raise ConfigError(f"{what}: {OURS} is not as it was written: an object of keys")
    return found.get(name)


def read_our_pixels(config: Json, *, what: str) -> Pixels | None:
    """What `ours` wrote of pixels, or None; raises ConfigError where it is there and not whole."""
    said = _ours(config, "pixels", what)
    if said is None:
        return None
    try:
        low, high = said["range"]
        size, resize, dtype = int(said["size"]), int(said["resize"]), str(said["dtype"])
        pixels = Pixels(size, resize, dtype, (float(low), float(high)), said["mean"], said["std"], said["filter"])
        crops.FILTERS[pixels.filter]  # or KeyError
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ConfigError(f"{what}: {OURS}.pixels is not as it was written ({shown(error)})") from error
    return pixels._replace(mean=numbers(said, "mean", what=what), std=numbers(said, "std", what=what))


def numbers(said: Mapping[str, Any], key: str, *, what: str) -> tuple[float, ...]:
    """A list of numbers under a key; raises ConfigError for anything else."""
    value = said.get(key)
    if not isinstance(value, list) or not value or not all(_number(v) for v in value):
        raise ConfigError(f"{what}: {key} is {shown(value)}; a list of a number for each channel is read")
    return tuple(float(v) for v in value)


def number(said: Mapping[str, Any], key: str, default: float, *, what: str, above: float = 0.0) -> float:
    """A number above 0, or what is asked, under a key; raises ConfigError for anything else."""
    value = said.get(key, default)
    if not _number(value) or not value > above:
        raise ConfigError(f"{what}: {key} is {shown(value)}; a number above {above:g} is read")
    return float(value)


def _number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def check_pixels(pixels: Pixels | None, channels: int, *, what: str) -> None:
    """Raises ConfigError unless the images are some that there are, with a mean and a deviation for each channel."""
    if pixels is None:
        return
    (low, high), sides = pixels.range, (pixels.size, pixels.resize)
    if pixels.dtype not in DTYPES or not 1 <= sides[0] <= sides[1] <= LARGEST or not (low < high < math.inf > -low):
        raise ConfigError(
            f"{what}: images of {pixels.dtype} with values {low:g} to {high:g}, resized to {shown(sides[1])} and "
            f"cut to {shown(sides[0])} pixels, are none that are read here ({', '.join(DTYPES)}; at most {LARGEST} "
            "pixels)"
        )
    measured = f"{what}: mean {shown(pixels.mean)} and std {shown(pixels.std)}"
    if (len(pixels.mean), len(pixels.std)) != (channels, channels):
        raise ConfigError(f"{measured} do not fit {channels} channels: one of each for every channel")
    if min(pixels.std) < LEAST_STD or max(map(abs, pixels.mean)) > MOST_MEAN:
        raise ConfigError(
            f"{measured} are those of no images, whose values are mapped to 0 to 1: std is at least {LEAST_STD:g}, and "
            f"mean at most {MOST_MEAN:g}"
        )


def check_stem(model: Model, *, whose: str) -> None:
    """Raises ConfigError unless the network begins as `whose` do; to be asked first, as no other format helps then."""
    if model.stem != "imagenet":
        raise ConfigError(
            f"{whose} begin with a 7x7 convolution and a max-pool; this encoder has the stem {model.stem!r} "
            "(model.stem), which is another network: --format=pth and --format=pth.tar hold it"
        )


def check_whole(portable: Portable) -> None:
    """Raises ConfigError unless backbone, classifier and pixels fit the architecture and the channels."""
    check_encoder(portable.backbone, portable.classifier, portable.model, portable.channels, what=portable.name)
    check_pixels(portable.pixels, portable.channels, what=portable.name)


def check_encoder(backbone: Tensors, classifier: Classifier | None, model: Model, channels: int, *, what: str) -> None:
    """Raises ConfigError unless the tensors are exactly of that architecture; `what` names them."""
    try:
        backbones.check(backbone, model, channels)
        if classifier is not None:
            weights.check_classifier(classifier, model)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None


def channels_of(tensors: Tensors, *, what: str) -> int:
    """The channels that the first convolution takes; raises ConfigError where there is none."""
    if "conv1.weight" not in tensors or tensors["conv1.weight"].ndim != 4:
        raise ConfigError(f"{what}: there is no first convolution of 4 axes, so it is no ResNet's")
    return int(tensors["conv1.weight"].shape[1])
