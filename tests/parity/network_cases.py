"""Inputs of the network's parity cases, in pure numpy: torchvision's ResNets at sizes where padding shows."""

from pathlib import Path

import numpy as np

from tests.parity.fb_golden import inputs

STORED = Path(__file__).parent / "golden" / "network.npz"
CASES = [("resnet18", 64), ("resnet18", 65), ("resnet50", 63)]  # (architecture, side of an image in pixels)
IMAGES = 3


def tensors(arch: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state_dict of the given shapes, without the classifier."""
    return {n: inputs.init_tensor(f"network_{arch}", n, s) for n, s in shapes.items() if not n.startswith("fc.")}


def images(arch: str, size: int) -> np.ndarray:
    """(IMAGES, 3, size, size)."""
    return inputs.rng(f"network_{arch}/{size}").standard_normal((IMAGES, 3, size, size))
