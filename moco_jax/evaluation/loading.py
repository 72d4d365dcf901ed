"""An encoder opened for evaluation: a run's folder, or a file of weights that another program wrote."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from moco_jax import parallel, places
from moco_jax.checkpoints import reading
from moco_jax.checkpoints.store import Store
from moco_jax.checkpoints.weights import Classifier
from moco_jax.config import BatchNorm, Config, ConfigError, read_stored, unknown
from moco_jax.core.randomness import INIT, key
from moco_jax.data import crops
from moco_jax.evaluation import foreign
from moco_jax.evaluation.encoder import (
    FrozenEncoder,
    Preprocessing,
    Values,
    digest,
    forward_of,
    freeze,
    preprocessing_of,
)
from moco_jax.models.encoder import Encoder, from_config
from moco_jax.state import Network


class Loaded(NamedTuple):
    """What a run's folder, or a file of weights, holds for evaluation."""

    trained: FrozenEncoder
    untrained: FrozenEncoder  # the same encoder as it began
    encoder: Encoder  # both are networks of its functions
    config: Config
    step: int | None  # None: a file of weights, which has no steps
    source: str  # label of the user's own images; "" where the config names them, or nobody does
    total_steps: int | None  # of the run, of which `step` are done
    values: Values
    origin: str = ""  # of a file of weights: which program's, in words
    has_head: bool = True  # whether there is a projection head, and thus a feature `head`
    classifier: Classifier | None = None  # that came with a file of weights

    def where(self, path: str | Path) -> str:
        """Which weights these are, of the path they were read from."""
        if self.step is None:
            return f"{path} ({self.origin})"
        return f"step {self.step} of {self.total_steps} of {path}"

    def named(self, path: str | Path) -> str:
        """The encoder and `where` it is from."""
        return f"{self.trained.label}{' of' if self.step is None else ','} {self.where(path)}"

    def check_feature(self, name: str, key: str) -> None:
        """ConfigError for the feature `head` of an encoder without one; `key` names what asked for it."""
        if name == "head" and not self.has_head:
            raise ConfigError(
                f"{key}={name!r}: encoder {self.trained.label!r} has no projection head; its features are those of the "
                f"backbone: {key}=backbone"
            )

    def resized(self, *, size: int | None, resize: int | None, filter: str | None = None) -> "Loaded":
        """The same with other centre views: `size` pixels cut from a shorter side of `resize`; None: as trained.

        Raises ConfigError for a filter that is none of `data.crops.FILTERS`.
        """
        how = self.trained.preprocessing
        if size is None and resize is None and filter is None:
            return self
        if filter is not None and filter not in crops.FILTERS:
            raise unknown("views.filter", filter, crops.FILTERS)
        size = size or how.size
        how = how._replace(size=size, resize=resize or max(size, how.resize), filter=filter or how.filter)
        forward = forward_of(self.encoder, how)
        trained, untrained = (freeze(forward, e.network, self.encoder, how) for e in (self.trained, self.untrained))
        return self._replace(trained=trained, untrained=untrained)

    def grouped(self, size: int | None) -> Encoder:
        """The encoder whose batch norm shares statistics among `size` images; None: as it was trained.

        Raises ConfigError where it is a user's own, whose batch norm is not ours to change.
        """
        if size is None or size == self.config.bn.group_size:
            return self.encoder
        built = built_of(self.config, self.values, group_size=size, with_head=self.has_head)
        if built.label != self.encoder.label:
            raise ConfigError(
                f"fit.group_size {size}: encoder {self.encoder.label!r} is one of your own, whose batch norm is as you "
                "built it; use None"
            )
        return built


Load = Callable[[str | Path], Loaded]  # from a path to an encoder


def load(
    checkpoint: str | Path, *, encoder: Encoder | None = None, preprocessing: Preprocessing | None = None
) -> Loaded:
    """The newest checkpoint of a run's folder, or a file of weights in any layout of `checkpoints.recognise`.

    Raises ConfigError where there is neither, where the run trained a user's own encoder that is not given here, and
    where a file does not say how images are prepared and `preprocessing` is not given.
    """
    path = places.at(checkpoint).expanduser()
    if reading.is_foreign(path):
        if encoder is not None:
            raise ConfigError(f"{checkpoint} is a file of weights, whose encoder is known by its tensors: no encoder=")
        return _of_file(path, preprocessing)
    if preprocessing is not None:
        raise ConfigError(f"{checkpoint} is no file of weights; a run says how its images are prepared itself")
    return _of_run(path, encoder)


def _of_run(run: Path, encoder: Encoder | None) -> Loaded:
    with Store(checkpoints_of(run), read_only=True) as store:
        step = store.latest()
        if step is None:
            raise none_yet(run)
        about = store.about(step)
        config, values = read_stored(about["config"]), Values(**about["values"])
        built = encoder
        if built is None:
            built = built_of(config, values, group_size=config.bn.group_size)
        if about["objects"]["encoder"] != built.label:
            raise ConfigError(
                f"{run} was trained with encoder {about['objects']['encoder']!r}, not {built.label!r}: "
                f"give {'the same one' if encoder else 'that one'} from Python, as encoder="
            )
        fresh = _fresh(built, config.seed)
        trained = store.restore_part(step, fresh, "online")
    both = _frozen(built, preprocessing_of(config, values), trained, fresh)
    return Loaded(*both, built, config, step, about["objects"]["source"], about["total_steps"], values)


def _of_file(path: Path, preprocessing: Preprocessing | None) -> Loaded:
    """A file has no beginning of its own: untrained is the same network from seed 0, or from its run's."""
    found = foreign.read(path, preprocessing)
    how, config, has_head = found.preprocessing, found.config, bool(found.weights.head)
    values = Values(how.channels, how.dtype, *how.range)
    built = built_of(config, values, group_size=config.bn.group_size, with_head=has_head)
    fresh = _fresh(built, config.seed)
    both = _frozen(built, how, foreign.placed(found.weights, fresh), fresh)
    return Loaded(*both, built, config, None, found.source, None, values, found.origin, has_head, found.classifier)


def _fresh(encoder: Encoder, seed: int) -> Network:
    """A network as training from that seed begins."""
    fresh: Network = parallel.born(lambda: Network(**encoder.init(key(seed, 0, INIT))))
    return fresh


def _frozen(
    encoder: Encoder, how: Preprocessing, trained: Network, fresh: Network
) -> tuple[FrozenEncoder, FrozenEncoder]:
    forward = forward_of(encoder, how)
    return freeze(forward, trained, encoder, how), freeze(forward, fresh, encoder, how)


def built_of(config: Config, values: Values, *, group_size: int, with_head: bool = True) -> Encoder:
    """The encoder that a run's config names, for images of its kind."""
    dtype = parallel.compute_dtype(config.model.dtype)
    size = config.views.size
    return from_config(
        config.model,
        BatchNorm(group_size),
        channels=values.channels,
        size=size,
        dtype=dtype,
        with_head=with_head,
    )


def checkpoints_of(run: Path) -> Path:
    """The folder of a run's checkpoints; ConfigError where `run` is no run, or has none yet."""
    if not run.is_dir():
        raise reading.missing(run)
    if not (run / "checkpoints").is_dir():
        if (run / "config.json").exists():
            raise none_yet(run)
        raise reading.neither(run)
    return run / "checkpoints"


def check_no_run(workdir: str | Path) -> None:
    """Raises ConfigError where a result would go among the files of a run itself, begun or finished."""
    if places.is_remote(workdir):
        raise ConfigError(f"--workdir={workdir} is in a bucket; results of evaluations go to a folder of this machine")
    folder = Path(workdir)
    if (folder / "config.json").exists() or (folder / "checkpoints").exists():
        raise ConfigError(
            f"--workdir={workdir} is the folder of a run itself: leave the flag out, and the result has a folder of "
            "its own among the run's, or give another folder"
        )


def none_yet(run: str | Path) -> ConfigError:
    """The error for a run that has saved nothing so far."""
    return ConfigError(f"{run} holds no finished checkpoint yet; train writes one every few epochs")


def stored_digest(checkpoint: str | Path, step: int | None, like: Network) -> str | None:
    """The digest of the online network on disk, read anew; None where it has been removed since.

    `step` None: a file of weights.
    """
    path = places.at(checkpoint).expanduser()
    if step is None:
        return digest(foreign.placed(reading.read(path).online, like)) if path.exists() else None
    with Store(path / "checkpoints", read_only=True) as store:
        return None if not store.holds(step) else digest(store.restore_part(step, like, "online"))


def workdir_for(checkpoint: str | Path, name: str) -> str:
    """Where the result of evaluation `name` goes unless said: in a run's folder, and beside a file of weights."""
    if places.is_remote(checkpoint):
        raise ConfigError(f"{checkpoint} is in a bucket: give --workdir, a folder of this machine for the result")
    path = Path(checkpoint).expanduser()
    if not reading.is_foreign(path):
        return str(path / name)
    stem = re.sub(r"(\.(pth|pt|bin|ckpt|safetensors|tar))+$", "", path.name)
    return str(path.with_name(f"{stem}_{name}"))


def load_encoder(
    path: str | Path, *, encoder: Encoder | None = None, preprocessing: Preprocessing | None = None
) -> FrozenEncoder:
    """The trained encoder of a run's folder or of a file of weights: images as stored in, backbone features (N, D) out.

    Of a run the online encoder of the newest checkpoint; of a file its query encoder or its backbone, as PyTorch's
    MoCo and torchvision write them. `module` and `variables` are the same in linen; `preprocessing` says what it
    expects, and has to be given for a file that does not say so. Raises ConfigError for a folder without a checkpoint,
    for a run of a user's own encoder that is not given, and for a file that is damaged, unsafe or unknown.
    """
    return load(path, encoder=encoder, preprocessing=preprocessing).trained
