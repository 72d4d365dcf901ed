"""How far two implementations of one encoder agree, on images that everybody has."""

import jax
import numpy as np

from moco_jax.checkpoints import weights
from moco_jax.checkpoints.weights import Encoder, Pixels
from moco_jax.config import BatchNorm
from moco_jax.data import crops
from moco_jax.models.encoder import from_config

COUNT = 8
SIZE = 64  # side of an image where nobody says what the encoder was trained on


def images(channels: int, pixels: Pixels | None) -> np.ndarray:
    """Standardised images (8, S, S, C) float32: windows of scikit-learn's two photographs, channels taken in turn."""
    from sklearn.datasets import load_sample_images

    size = SIZE if pixels is None else pixels.size
    mean, std = ((0.5,), (0.25,)) if pixels is None else (pixels.mean, pixels.std)
    out = []
    for photo in load_sample_images().images:  # (427, 640, 3) uint8
        for i in range(COUNT // 2):
            window = photo[40 * i : 40 * i + 300, 100 * i : 100 * i + 300]
            small = crops.center(window, resize=size, size=size)
            out.append(small[..., np.arange(channels) % 3].reshape(size, size, channels))
    x = np.stack(out).astype(np.float32) / 255  # (8, S, S, C)
    return ((x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).astype(np.float32)


def features(encoder: Encoder, x: np.ndarray) -> np.ndarray:
    """Pooled features (N, D) of standardised images (N, S, S, C), by our own network, in full float32."""
    made = from_config(
        encoder.model, BatchNorm(1), channels=encoder.channels, size=x.shape[1], dtype=np.dtype("float32")
    )
    assert made.module is not None
    variables = {kind: {"backbone": tree["backbone"]} for kind, tree in weights.network(encoder).items()}
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(made.module.apply)(variables, x))


def furthest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest relative difference between two features (N, D) of one image."""
    wide = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.max(np.linalg.norm(wide[0] - wide[1], axis=1) / np.linalg.norm(wide[1], axis=1)))
