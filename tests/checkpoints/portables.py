"""Encoders to be written, with random weights and statistics; and the real libraries, where they are installed."""

from typing import Any

import numpy as np
import pytest

from moco_jax.checkpoints.backbones import feature_size, shapes
from moco_jax.checkpoints.weights import Classifier, Pixels, Portable
from moco_jax.config import Model
from tests.parity.torchvision_cpu import import_torchvision

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NAMES = ("cat", "dog", "newt", "owl", "yak")


def pixels(channels: int = 3, size: int = 64, resize: int = 73, **changes: Any) -> Pixels:
    """8-bit images, each channel standardised in its own way."""
    mean = tuple(round(0.3 + 0.01 * i, 2) for i in range(channels))
    std = tuple(round(0.2 + 0.01 * i, 2) for i in range(channels))
    return Pixels(size, resize, "uint8", (0.0, 255.0), mean, std)._replace(**changes)


def tensor(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random tensor that keeps values of a deep network in bounds; no statistic is that of a fresh batch norm."""
    if len(shape) == 4:
        out = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith(("weight", "running_var")):
        out = rng.uniform(0.5, 1.5, shape)
    else:
        out = rng.uniform(-0.3, 0.3, shape)
    return out.astype(np.float32)


def portable(
    arch: str = "resnet18",
    *,
    channels: int = 3,
    width: int = 64,
    stem: str = "imagenet",
    classes: Any = None,
    **changes: Any,
) -> Portable:
    """An encoder; `classes` is a number, or names."""
    model, rng = Model(arch=arch, stem=stem, width=width), np.random.default_rng(7)
    classifier = None
    if classes is not None:
        names = classes if isinstance(classes, tuple) else None
        rows = len(names) if names else classes
        weight = rng.standard_normal((rows, feature_size(model))).astype(np.float32)
        classifier = Classifier(weight, rng.standard_normal(rows).astype(np.float32), names)
    backbone = {name: tensor(rng, name, shape) for name, shape in shapes(model, channels).items()}
    base = Portable(
        backbone=backbone,
        model=model,
        channels=channels,
        pixels=pixels(channels),
        classifier=classifier,
        name="run",
        origin="a run of moco_jax, step 7",
        which="online",
        license="mit",
        license_note="MIT, as the file that it comes from.",
        config={"mechanism": "moco", "seed": 3},
    )
    return base._replace(**changes)


def images(channels: int = 3, size: int = 64) -> np.ndarray:
    """Prepared images (4, channels, size, size)."""
    return np.random.default_rng(1).standard_normal((4, channels, size, size)).astype(np.float32)


def torchvision() -> Any:
    """torchvision, imported before the libraries that would import it; or skip."""
    found = import_torchvision()
    if found is None:
        pytest.skip("torch and torchvision are not installed")
    return found


def features_in_torchvision(encoder: Portable, images: np.ndarray) -> np.ndarray:
    """Features by torchvision's own network of the architecture, its first layer for the encoder's channels."""
    models = torchvision().models
    import torch

    net = getattr(models, encoder.model.arch)()
    net.fc = torch.nn.Identity()
    net.conv1 = torch.nn.Conv2d(encoder.channels, 64, 7, 2, 3, bias=False)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in encoder.backbone.items()})
    with torch.no_grad():
        return net.eval()(torch.from_numpy(images)).numpy()


def logits(encoder: Portable, features: np.ndarray) -> np.ndarray:
    """What the classifier makes of features."""
    assert encoder.classifier is not None
    return features @ encoder.classifier.weight.T + encoder.classifier.bias


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of an image, over the size of what it has."""
    assert a.shape == b.shape
    rows = np.abs(a - b).reshape(len(a), -1).max(1) / np.abs(b).reshape(len(b), -1).max(1)
    return float(rows.max())


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Asserts that names, dtypes and every value are equal."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert np.array_equal(a[name], b[name]), name
