"""A frozen encoder: images in, features out, and a fingerprint to show that nothing moved."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moco_jax import parallel
from moco_jax import views as views_package
from moco_jax.config import Config, ConfigError
from moco_jax.data import crops, loader
from moco_jax.data.sources import ArraySource
from moco_jax.models.encoder import Encoder
from moco_jax.state import Network

Forward = Callable[[Network, jax.Array], dict[str, jax.Array]]


class Values(NamedTuple):
    """What stored values mean; kept in the checkpoint so that an encoder needs no training data to be used."""

    channels: int
    dtype: str
    low: float
    high: float


class Preprocessing(NamedTuple):
    """What an encoder expects: images (H, W, channels) of `dtype`, a centre view of them, then normalised values."""

    size: int  # side of the view that is cut from the centre
    resize: int  # the shorter side before that
    channels: int
    dtype: str  # of the images as stored: uint8, uint16 or float32
    range: tuple[float, float]  # stored values that are mapped to 0 and 1, not clipped
    mean: tuple[float, ...]  # per channel, of values mapped to 0..1
    std: tuple[float, ...]
    computed: str  # dtype of the result
    filter: str = "bilinear"  # that resizes, or bicubic

    def view(self, image: np.ndarray) -> np.ndarray:
        """The centre view (size, size, channels) of one image as stored, in its dtype."""
        return crops.center(image, resize=self.resize, size=self.size, filter=self.filter)

    def standardise(self, views: jax.Array | np.ndarray) -> jax.Array:
        """Views (n, S, S, channels) as stored -> what the encoder was trained to see, without augmentation."""
        low, high = self.range
        return views_package.standardise(
            jnp.asarray(views), low=low, high=high, mean=self.mean, std=self.std, dtype=np.dtype(self.computed)
        )

    def check(self, image: Any, what: str) -> None:
        """ConfigError for an image that is not (H, W, channels) of the dtype as stored; `what` names it."""
        have = str(getattr(image, "dtype", type(image).__name__)), np.shape(image)
        if have[0] != self.dtype or len(have[1]) != 3 or have[1][2] != self.channels:
            raise ConfigError(
                f"{what} is {have[0]} {have[1]}; the encoder takes images (H, W, {self.channels}) of {self.dtype}, as "
                "stored: a list of them, or an array (N, H, W, C)"
            )


class FrozenEncoder(NamedTuple):
    """A network in evaluation mode: what an evaluation receives, and what `load_encoder` returns."""

    # raw views (n, S, S, C) as stored -> {backbone (n, D), head (n, C)}, where there is no head {backbone} alone;
    # ConfigError for another dtype or shape
    features: Callable[[np.ndarray], dict[str, np.ndarray]]
    network: Network  # its parameters and statistics, for `digest`
    label: str
    preprocessing: Preprocessing
    module: nn.Module | None  # linen: `apply(variables, preprocess(images), train=False) -> (N, D)`; None: not in linen

    @property
    def view_shape(self) -> tuple[int, int, int]:
        """(S, S, C)."""
        return self.preprocessing.size, self.preprocessing.size, self.preprocessing.channels

    @property
    def variables(self) -> dict[str, Any]:
        """{"params", "batch_stats"} of `module`: those of the network without its head."""
        trees = {"params": self.network.params, "batch_stats": self.network.batch_stats}
        return {name: {k: v for k, v in tree.items() if k == "backbone"} for name, tree in trees.items()}

    def preprocess(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Images as stored, as `__call__` takes them -> what `module` takes: (N, S, S, C), all at once."""
        self._check(images)
        views = np.stack([self.preprocessing.view(np.asarray(image)) for image in images])
        return np.asarray(self.preprocessing.standardise(views))

    def __call__(self, images: Sequence[np.ndarray] | np.ndarray, *, batch_size: int = 256) -> np.ndarray:
        """Backbone features (N, D) of images as stored: a list of arrays (H, W, C) of any sizes, or one (N, H, W, C).

        The shorter side is resized to `preprocessing.resize` and the centre cut out, as in evaluation; `batch_size`
        images are encoded per call. Raises ConfigError for no images, and for another dtype or channels.
        """
        self._check(images)
        how = self.preprocessing
        batches = loader.centered(ArraySource(images), how.view, batch_size=min(batch_size, len(images)))
        return np.concatenate([self.features(rows)["backbone"][:real] for rows, real in batches])

    def _check(self, images: Sequence[np.ndarray] | np.ndarray) -> None:
        if not len(images):
            raise ConfigError("there are no images to encode")
        for i, image in enumerate(images):
            self.preprocessing.check(image, f"image {i}")


def preprocessing_of(config: Config, values: Values) -> Preprocessing:
    """What a run's encoder expects, of its resolved config and of what its images hold."""
    return Preprocessing(
        size=config.views.size,
        resize=config.eval.resize or config.views.size,
        channels=values.channels,
        dtype=values.dtype,
        range=(values.low, values.high),
        mean=config.data.mean,
        std=config.data.std,
        computed=str(parallel.compute_dtype(config.model.dtype)),
    )


def forward_of(encoder: Encoder, preprocessing: Preprocessing) -> Forward:
    """(network, raw views) -> features, in evaluation mode, compiled once for all networks of an encoder."""

    @jax.jit
    def forward(network: Network, x: jax.Array) -> dict[str, jax.Array]:
        return encoder.features(network.params, network.batch_stats, preprocessing.standardise(x))

    return forward


def freeze(forward: Forward, network: Network, encoder: Encoder, preprocessing: Preprocessing) -> FrozenEncoder:
    """The encoder of `forward` with the parameters and batch statistics of `network`."""
    local, channels, stored = parallel.local(network), preprocessing.channels, preprocessing.dtype

    def features(x: np.ndarray) -> dict[str, np.ndarray]:
        if np.ndim(x) != 4 or np.shape(x)[3] != channels or str(getattr(x, "dtype", None)) != stored:
            have = f"{getattr(x, 'dtype', type(x).__name__)} {np.shape(x)}"
            raise ConfigError(f"the encoder takes {stored} views (n, H, W, {channels}) as stored, not {have}")
        return jax.tree.map(np.asarray, forward(local, parallel.put_rows(x)))

    return FrozenEncoder(features, local, encoder.label, preprocessing, encoder.module)


def digest(tree: Any) -> str:
    """SHA-256 over every leaf of a tree, in order."""
    out = hashlib.sha256()
    for leaf in jax.tree.leaves(parallel.host(tree)):
        out.update(np.ascontiguousarray(leaf).tobytes())
    return out.hexdigest()
