"""A frozen encoder: raw views in, features out, and a fingerprint to show that nothing moved."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from moco_jax import parallel
from moco_jax import views as views_package
from moco_jax.checkpoints.store import Store
from moco_jax.config import Config, ConfigError, read_stored
from moco_jax.core.randomness import INIT, key
from moco_jax.models.encoder import Encoder, from_config
from moco_jax.state import Network

Forward = Callable[[Network, jax.Array], dict[str, jax.Array]]


class FrozenEncoder(NamedTuple):
    """What an evaluation receives."""

    # raw views (n, S, S, C) as stored -> {backbone (n, D), head (n, C)}; ConfigError for another dtype or shape
    features: Callable[[np.ndarray], dict[str, np.ndarray]]
    network: Network  # its parameters and statistics, for `digest`
    label: str
    view_shape: tuple[int, int, int]  # (S, S, C)


class Values(NamedTuple):
    """What stored values mean; kept in the checkpoint so that an encoder needs no training data to be used."""

    channels: int
    dtype: str
    low: float
    high: float


def standardiser(config: Config, values: Values, dtype: Any) -> Callable[[jax.Array], jax.Array]:
    """raw views (n, S, S, C) -> what the encoder was trained to see, without augmentation."""
    return lambda x: views_package.standardise(
        x, low=values.low, high=values.high, mean=config.data.mean, std=config.data.std, dtype=dtype
    )


def forward_of(encoder: Encoder, standardise: Callable[[jax.Array], jax.Array]) -> Forward:
    """(network, raw views) -> features, in evaluation mode, compiled once for all networks of an encoder."""

    @jax.jit
    def forward(network: Network, x: jax.Array) -> dict[str, jax.Array]:
        return encoder.features(network.params, network.batch_stats, standardise(x))

    return forward


def freeze(
    forward: Forward, network: Network, label: str, view_shape: tuple[int, int, int], stored: str
) -> FrozenEncoder:
    """The encoder of `forward` with the parameters and batch statistics of `network`, for images of dtype `stored`."""
    local = parallel.local(network)

    def features(x: np.ndarray) -> dict[str, np.ndarray]:
        if np.ndim(x) != 4 or np.shape(x)[3] != view_shape[2] or str(getattr(x, "dtype", None)) != stored:
            have = f"{getattr(x, 'dtype', type(x).__name__)} {np.shape(x)}"
            raise ConfigError(f"the encoder takes {stored} views (n, H, W, {view_shape[2]}) as stored, not {have}")
        return jax.tree.map(np.asarray, forward(local, parallel.put_rows(x)))

    return FrozenEncoder(features, local, label, view_shape)


def digest(tree: Any) -> str:
    """SHA-256 over every leaf of a tree, in order."""
    out = hashlib.sha256()
    for leaf in jax.tree.leaves(parallel.host(tree)):
        out.update(np.ascontiguousarray(leaf).tobytes())
    return out.hexdigest()


class Loaded(NamedTuple):
    """What a run's folder holds for evaluation."""

    trained: FrozenEncoder
    untrained: FrozenEncoder  # the same encoder as it began
    config: Config
    step: int
    source: str  # label of the user's own images; "" where the config names them
    total_steps: int  # of the run, of which `step` are done


def load(checkpoint: str | Path, *, encoder: Encoder | None = None) -> Loaded:
    """The newest checkpoint of a run's folder.

    Raises ConfigError where there is none, or where the run trained a user's own encoder that is not given here.
    """
    with Store(Path(checkpoint) / "checkpoints", read_only=True) as store:
        step = store.latest()
        if step is None:
            raise ConfigError(f"{checkpoint} holds no finished checkpoint yet; train writes one every few epochs")
        about = store.about(step)
        config, values = read_stored(about["config"]), Values(**about["values"])
        shape = (config.views.size, config.views.size, values.channels)
        dtype = parallel.compute_dtype(config.model.dtype)
        built = encoder
        if built is None:
            built = from_config(config.model, config.bn, channels=shape[2], size=shape[0], dtype=dtype)
        if about["objects"]["encoder"] != built.label:
            raise ConfigError(
                f"{checkpoint} was trained with encoder {about['objects']['encoder']!r}, not {built.label!r}: "
                "give the same one as encoder="
            )
        fresh = parallel.born(lambda: Network(**built.init(key(config.seed, 0, INIT))))
        trained = store.restore_part(step, fresh, "online")
    forward = forward_of(built, standardiser(config, values, dtype))
    frozen = [freeze(forward, network, built.label, shape, values.dtype) for network in (trained, fresh)]
    return Loaded(frozen[0], frozen[1], config, step, about["objects"]["source"], about["total_steps"])


def stored_digest(checkpoint: str | Path, step: int, like: Network) -> str:
    """The digest of the online network that a checkpoint holds, read anew."""
    with Store(Path(checkpoint) / "checkpoints", read_only=True) as store:
        return digest(store.restore_part(step, like, "online"))


def load_encoder(checkpoint: str | Path, *, encoder: Encoder | None = None) -> FrozenEncoder:
    """The trained online encoder of a run's folder, frozen."""
    return load(checkpoint, encoder=encoder).trained
