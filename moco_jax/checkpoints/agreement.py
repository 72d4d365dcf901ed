"""How far another program's features of an encoder are from ours, on images that everybody has."""

from collections.abc import Callable

import jax
import numpy as np

from moco_jax.checkpoints import weights
from moco_jax.checkpoints.weights import Encoder, Pixels
from moco_jax.config import BatchNorm, ConfigError
from moco_jax.data import crops
from moco_jax.models.encoder import from_config

TOLERANCE = 1e-5  # of a feature's length, in float32: above it a conversion is refused
COUNT = 8  # images
AT_ONCE = 2  # of them: their maps are larger than many an encoder
SIZE = 64  # side of an image where nobody says what the encoder was trained on

Forward = Callable[[np.ndarray], np.ndarray]  # standardised images (n, C, S, S) float32 -> features (n, D)


def of(encoder: Encoder, pixels: Pixels | None, theirs: Forward, library: str) -> str:
    """How far `library` and our network agree on an encoder, in words; ConfigError where they do not."""
    x = images(encoder.channels, pixels)
    ours = _in_parts(_forward(encoder, x.shape[1]), x)
    others = _in_parts(theirs, np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    if not np.isfinite(ours).all() and not np.isfinite(others).all():
        raise ConfigError(
            f"its features are not finite, by {library} and by ours: the weights hold values that no encoder has; "
            "nothing was kept"
        )
    with np.errstate(all="ignore"):  # of one side alone, they differ
        apart = furthest(ours, others)
    if not apart <= TOLERANCE:
        raise ConfigError(
            f"features by {library} differ from ours by {apart:.1e} of their length, more than {TOLERANCE:g}: nothing "
            "was kept; please report it with the file"
        )
    return (
        f"features of {COUNT} images of {x.shape[1]} pixels, JAX against {library}: {apart:.1e} apart at most, relative"
    )


def images(channels: int, pixels: Pixels | None) -> np.ndarray:
    """Standardised images (8, S, S, C) float32: windows of scikit-learn's two photographs, channels taken in turn."""
    from sklearn.datasets import load_sample_images

    size = SIZE if pixels is None else pixels.size
    mean, std = ((0.5,), (0.25,)) if pixels is None else (pixels.mean, pixels.std)
    out = []
    for photo in load_sample_images().images:  # (427, 640, 3) uint8
        for i in range(COUNT // 2):
            window = photo[40 * i : 40 * i + 300, 100 * i : 100 * i + 300]
            out.append(crops.center(window, resize=size, size=size)[..., np.arange(channels) % 3])
    x = np.stack(out).astype(np.float32) / 255  # (8, S, S, C)
    return ((x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).astype(np.float32)


def furthest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference between two features (N, D) of one image, as a share of their length."""
    one, other = ours.astype(np.float64), theirs.astype(np.float64)
    length = np.maximum(np.linalg.norm(other, axis=1), np.finfo(np.float32).tiny)  # of a network that says nothing: 0
    return float(np.max(np.linalg.norm(one - other, axis=1) / length))


def _forward(encoder: Encoder, size: int) -> Forward:
    """Our network in full float32: (n, S, S, C) -> (n, D)."""
    made = from_config(encoder.model, BatchNorm(1), channels=encoder.channels, size=size, dtype=np.dtype("float32"))
    assert made.module is not None
    variables = {kind: {"backbone": tree["backbone"]} for kind, tree in weights.network(encoder).items()}
    apply = jax.jit(made.module.apply)

    def forward(x: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            return np.asarray(apply(variables, x))

    return forward


def _in_parts(forward: Forward, x: np.ndarray) -> np.ndarray:
    return np.concatenate([forward(x[i : i + AT_ONCE]) for i in range(0, len(x), AT_ONCE)])
