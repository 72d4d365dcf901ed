"""A frozen encoder: images in, features out, and a fingerprint to show that nothing moved."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moco_jax import parallel
from moco_jax import views as views_package
from moco_jax.checkpoints.store import Store
from moco_jax.config import BatchNorm, Config, ConfigError, read_stored
from moco_jax.core.randomness import INIT, key
from moco_jax.data import crops, loader
from moco_jax.data.sources import ArraySource
from moco_jax.models.encoder import Encoder, from_config
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

    def view(self, image: np.ndarray) -> np.ndarray:
        """The centre view (size, size, channels) of one image as stored, in its dtype."""
        return crops.center(image, resize=self.resize, size=self.size)

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

    # raw views (n, S, S, C) as stored -> {backbone (n, D), head (n, C)}; ConfigError for another dtype or shape
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
        batches = loader.centered(
            ArraySource(images), size=how.size, resize=how.resize, batch_size=min(batch_size, len(images))
        )
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


class Loaded(NamedTuple):
    """What a run's folder holds for evaluation."""

    trained: FrozenEncoder
    untrained: FrozenEncoder  # the same encoder as it began
    encoder: Encoder  # both are networks of its functions
    config: Config
    step: int
    source: str  # label of the user's own images; "" where the config names them
    total_steps: int  # of the run, of which `step` are done
    values: Values

    def resized(self, *, size: int | None, resize: int | None) -> "Loaded":
        """The same with other centre views: `size` pixels cut from a shorter side of `resize`; None: as trained."""
        how = self.trained.preprocessing
        if size is None and resize is None:
            return self
        size = size or how.size
        how = how._replace(size=size, resize=resize or max(size, how.resize))
        forward = forward_of(self.encoder, how)
        trained, untrained = (freeze(forward, e.network, self.encoder, how) for e in (self.trained, self.untrained))
        return self._replace(trained=trained, untrained=untrained)

    def grouped(self, size: int | None) -> Encoder:
        """The encoder whose batch norm shares statistics among `size` images; None: as it was trained.

        Raises ConfigError where it is a user's own, whose batch norm is not ours to change.
        """
        if size is None or size == self.config.bn.group_size:
            return self.encoder
        built = built_of(self.config, self.values, group_size=size)
        if built.label != self.encoder.label:
            raise ConfigError(
                f"fit.group_size {size}: encoder {self.encoder.label!r} is one of your own, whose batch norm is as you "
                "built it; use None"
            )
        return built


Load = Callable[[str | Path], Loaded]  # from a path to an encoder


def load(checkpoint: str | Path, *, encoder: Encoder | None = None) -> Loaded:
    """The newest checkpoint of a run's folder.

    Raises ConfigError where there is none, or where the run trained a user's own encoder that is not given here.
    """
    with Store(_checkpoints(Path(checkpoint)), read_only=True) as store:
        step = store.latest()
        if step is None:
            raise _none_yet(checkpoint)
        about = store.about(step)
        config, values = read_stored(about["config"]), Values(**about["values"])
        preprocessing = preprocessing_of(config, values)
        built = encoder
        if built is None:
            built = built_of(config, values, group_size=config.bn.group_size)
        if about["objects"]["encoder"] != built.label:
            raise ConfigError(
                f"{checkpoint} was trained with encoder {about['objects']['encoder']!r}, not {built.label!r}: "
                f"give {'the same one' if encoder else 'that one'} from Python, as encoder="
            )
        fresh = parallel.born(lambda: Network(**built.init(key(config.seed, 0, INIT))))
        trained = store.restore_part(step, fresh, "online")
    forward = forward_of(built, preprocessing)
    both = [freeze(forward, network, built, preprocessing) for network in (trained, fresh)]
    return Loaded(both[0], both[1], built, config, step, about["objects"]["source"], about["total_steps"], values)


def built_of(config: Config, values: Values, *, group_size: int) -> Encoder:
    """The encoder that a run's config names, for images of its kind."""
    dtype = parallel.compute_dtype(config.model.dtype)
    size = config.views.size
    return from_config(config.model, BatchNorm(group_size), channels=values.channels, size=size, dtype=dtype)


def _checkpoints(run: Path) -> Path:
    """The folder of a run's checkpoints; ConfigError where `run` is no run, or has none yet."""
    if not run.is_dir():
        raise ConfigError(f"there is no folder {run}: give that of a run, the one that train wrote to")
    if not (run / "checkpoints").is_dir():
        if (run / "config.json").exists():
            raise _none_yet(run)
        raise ConfigError(f"there are no checkpoints in {run}: give the folder of a run, the one that train wrote to")
    return run / "checkpoints"


def check_no_run(workdir: str | Path) -> None:
    """Raises ConfigError where a result would go among the files of a run itself, begun or finished."""
    folder = Path(workdir)
    if (folder / "config.json").exists() or (folder / "checkpoints").exists():
        raise ConfigError(
            f"--workdir={workdir} is the folder of a run itself: leave the flag out, and the result has a folder of "
            "its own among the run's, or give another folder"
        )


def _none_yet(run: str | Path) -> ConfigError:
    return ConfigError(f"{run} holds no finished checkpoint yet; train writes one every few epochs")


def stored_digest(checkpoint: str | Path, step: int, like: Network) -> str | None:
    """The digest of the online network that a checkpoint holds, read anew; None where its run has removed it since."""
    with Store(Path(checkpoint) / "checkpoints", read_only=True) as store:
        return None if not store.holds(step) else digest(store.restore_part(step, like, "online"))


def load_encoder(path: str | Path, *, encoder: Encoder | None = None) -> FrozenEncoder:
    """The trained online encoder of a run's folder: images as stored in, backbone features (N, D) out.

    Of the newest checkpoint; `module` and `variables` are the same in linen, `preprocessing` says what it expects.
    Raises ConfigError for a folder without a checkpoint, and for a run of a user's own encoder that is not given.
    """
    return load(path, encoder=encoder).trained
