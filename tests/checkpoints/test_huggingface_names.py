"""Names of transformers' ResNets: one for each of ours and the reverse, and nothing left over on either side."""

import numpy as np
import pytest

from moco_jax.checkpoints.backbones import shapes, with_counts
from moco_jax.checkpoints.huggingface_names import from_huggingface, to_huggingface
from moco_jax.config import ConfigError, Model
from moco_jax.models.resnet import ARCHS
from tests.checkpoints.portables import torchvision

PAIRS = [
    ("conv1.weight", "embedder.embedder.convolution.weight"),
    ("bn1.running_var", "embedder.embedder.normalization.running_var"),
    ("layer1.0.conv2.weight", "encoder.stages.0.layers.0.layer.1.convolution.weight"),
    ("layer3.22.bn3.bias", "encoder.stages.2.layers.22.layer.2.normalization.bias"),
    ("layer2.0.downsample.0.weight", "encoder.stages.1.layers.0.shortcut.convolution.weight"),
    ("layer4.0.downsample.1.running_mean", "encoder.stages.3.layers.0.shortcut.normalization.running_mean"),
]


def named(*names: str) -> dict[str, np.ndarray]:
    """A tensor of its own for each name."""
    return {name: np.float32([i]) for i, name in enumerate(names)}


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_the_spelling_rule(here, there):
    """Each kind of layer, with and without the prefix that a classifier brings."""
    assert list(to_huggingface(named(here))) == [there]
    assert list(from_huggingface(named(there))) == [here]
    both = to_huggingface(named(here, "fc.weight", "fc.bias"))
    assert list(both) == ["resnet." + there, "classifier.1.weight", "classifier.1.bias"]
    assert list(from_huggingface(both)) == [here, "fc.weight", "fc.bias"]


@pytest.mark.parametrize("arch", ARCHS)
def test_there_and_back_is_the_same(arch):
    """Every name of every architecture, with the tensor that it had; counts of batches are left out both ways."""
    tensors = named(*shapes(Model(arch=arch, stem="imagenet"), 3))
    there = to_huggingface(with_counts(tensors))
    assert len(there) == len(tensors)
    assert from_huggingface(with_counts(there)) == tensors


@pytest.mark.parametrize(
    "name", ["head.weight", "layer1.0.conv4.weight", "layer1.0.conv1.bias", "bn2.weight", "fc.0.bias"]
)
def test_a_name_without_a_place_there_is_an_error(name):
    """Never a tensor lost on the way out."""
    with pytest.raises(ConfigError, match=f"transformers' ResNets have no place for {name}"):
        to_huggingface(named("conv1.weight", name))


@pytest.mark.parametrize(
    "name",
    [
        "encoder.stages.0.layers.0.layer.3.convolution.weight",
        "encoder.stages.0.layers.0.layer.0.convolution.bias",
        "encoder.stages.0.layers.0.attention.weight",
        "embedder.embedder.convolution.bias",
        "classifier.2.weight",
        "vit.embeddings.cls_token",
    ],
)
def test_a_name_without_a_place_here_is_an_error(name):
    """Never a tensor lost on the way in."""
    with pytest.raises(ConfigError, match=f"no place for {name}"):
        from_huggingface(named("embedder.embedder.convolution.weight", name))


def test_half_of_a_prefix_is_an_error():
    """A tensor outside `resnet.` beside tensors inside it is named."""
    with pytest.raises(ConfigError, match=r"no place for embedder.embedder.convolution.weight"):
        from_huggingface(named("resnet.embedder.embedder.normalization.bias", "embedder.embedder.convolution.weight"))


@pytest.mark.parametrize("arch", ARCHS)
def test_these_are_the_names_of_transformers(arch):
    """The library's own networks have exactly these names and shapes, with and without a classifier."""
    torchvision()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    stages = ARCHS[arch].stage_sizes
    grows = 4 if arch in ("resnet50", "resnet101", "resnet152") else 1
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8 * 2**i * grows for i in range(len(stages))],
        depths=list(stages),
        layer_type="bottleneck" if grows == 4 else "basic",
    )
    ours = {
        name: np.broadcast_to(np.float32(0), s)
        for name, s in shapes(Model(arch=arch, stem="imagenet", width=8), 3).items()
    }
    ours["fc.weight"], ours["fc.bias"] = np.zeros((2, config.hidden_sizes[-1])), np.zeros(2)
    for kind, tensors in (
        (transformers.ResNetForImageClassification, ours),
        (transformers.ResNetModel, {k: v for k, v in ours.items() if not k.startswith("fc.")}),
    ):
        theirs = {name: tuple(value.shape) for name, value in kind(config).state_dict().items()}
        assert {name: value.shape for name, value in with_counts(to_huggingface(tensors)).items()} == theirs
