"""Names of a ResNet in torchvision and in Hugging Face's transformers (`ResNetModel`), both ways. Layouts are equal.

| torchvision | ResNetModel; ResNetForImageClassification has `resnet.` before it |
|---|---|
| conv1.weight, bn1.* | embedder.embedder.convolution.weight, embedder.embedder.normalization.* |
| layer1.0.conv2.weight, layer1.0.bn2.* | encoder.stages.0.layers.0.layer.1.convolution.weight, ....normalization.* |
| layer2.0.downsample.0.weight | encoder.stages.1.layers.0.shortcut.convolution.weight |
| layer2.0.downsample.1.* | encoder.stages.1.layers.0.shortcut.normalization.* |
| fc.weight, fc.bias | classifier.1.weight, classifier.1.bias, without `resnet.` |

There is one convention for basic blocks and bottlenecks. Source: transformers' models/resnet/modeling_resnet.py.
"""

import re

from moco_jax.checkpoints.backbones import without_counts
from moco_jax.checkpoints.messages import listed
from moco_jax.checkpoints.weights import Tensors
from moco_jax.config import ConfigError

PREFIX, CLASSIFIER = "resnet.", "classifier.1."
NORM = r"(weight|bias|running_mean|running_var)"


def huggingface_name(name: str) -> str | None:
    """The name in a `ResNetModel` of a backbone's tensor in torchvision; None where there is none."""
    if name == "conv1.weight":
        return "embedder.embedder.convolution.weight"
    if match := re.fullmatch(rf"bn1\.{NORM}", name):
        return f"embedder.embedder.normalization.{match[1]}"
    match = re.fullmatch(r"layer([1-9])\.(\d+)\.(.+)", name)
    if match is None:
        return None
    block = f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}"
    if inner := re.fullmatch(r"conv([1-3])\.weight", match[3]):
        return f"{block}.layer.{int(inner[1]) - 1}.convolution.weight"
    if inner := re.fullmatch(rf"bn([1-3])\.{NORM}", match[3]):
        return f"{block}.layer.{int(inner[1]) - 1}.normalization.{inner[2]}"
    if match[3] == "downsample.0.weight":
        return f"{block}.shortcut.convolution.weight"
    if inner := re.fullmatch(rf"downsample\.1\.{NORM}", match[3]):
        return f"{block}.shortcut.normalization.{inner[1]}"
    return None


def torchvision_name(name: str) -> str | None:
    """The name in torchvision of a `ResNetModel`'s tensor; None where there is none."""
    if name == "embedder.embedder.convolution.weight":
        return "conv1.weight"
    if match := re.fullmatch(rf"embedder\.embedder\.normalization\.{NORM}", name):
        return f"bn1.{match[1]}"
    match = re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return None
    block = f"layer{int(match[1]) + 1}.{match[2]}"
    if inner := re.fullmatch(r"layer\.([0-2])\.convolution\.weight", match[3]):
        return f"{block}.conv{int(inner[1]) + 1}.weight"
    if inner := re.fullmatch(rf"layer\.([0-2])\.normalization\.{NORM}", match[3]):
        return f"{block}.bn{int(inner[1]) + 1}.{inner[2]}"
    if match[3] == "shortcut.convolution.weight":
        return f"{block}.downsample.0.weight"
    if inner := re.fullmatch(rf"shortcut\.normalization\.{NORM}", match[3]):
        return f"{block}.downsample.1.{inner[1]}"
    return None


def to_huggingface(tensors: Tensors) -> Tensors:
    """Tensors under torchvision's names as a `ResNetModel` names them, or with `fc.*` a `ResNetForImageClassification`.

    Raises ConfigError for names that have none there; counts of batches alone are left out.
    """
    prefix = PREFIX if any(name.startswith("fc.") for name in tensors) else ""
    out, left = {}, []
    for name, tensor in without_counts(tensors).items():
        there = huggingface_name(name)
        if name in ("fc.weight", "fc.bias"):
            out[CLASSIFIER + name.removeprefix("fc.")] = tensor
        elif there is None:
            left.append(name)
        else:
            out[prefix + there] = tensor
    if left:
        raise ConfigError(f"transformers' ResNets have no place for {listed(left)}")
    return out


def from_huggingface(tensors: Tensors) -> Tensors:
    """The same the other way: the backbone, and `fc.*` where there is a classifier.

    Raises ConfigError for names that no ResNet of transformers has, and where some have `resnet.` before them and
    others do not; counts of batches alone are left out.
    """
    given = without_counts(tensors)
    prefix = PREFIX if any(name.startswith((PREFIX, CLASSIFIER)) for name in given) else ""
    out, left = {}, []
    for name, tensor in given.items():
        here = torchvision_name(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if name in (CLASSIFIER + "weight", CLASSIFIER + "bias"):
            here = "fc." + name.removeprefix(CLASSIFIER)
        if here is None:
            left.append(name)
        else:
            out[here] = tensor
    if left:
        raise ConfigError(f"torchvision's ResNets have no place for {listed(left)}: is it another network's file?")
    return out
