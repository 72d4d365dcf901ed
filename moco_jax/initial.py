"""Weights that a run starts from, `train.init_from`: read, fitted to its encoder, and put into both of its networks.

Starting from weights is not resuming: queue, optimizer, step and draws are those of a run that starts from none.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from moco_jax import parallel, places
from moco_jax.checkpoints import origin, reading, weights
from moco_jax.checkpoints.store import Store
from moco_jax.config import Config, ConfigError, Model, read_stored
from moco_jax.core.randomness import INIT, key
from moco_jax.evaluation.encoder import Values
from moco_jax.evaluation.loading import checkpoints_of, none_yet
from moco_jax.models.encoder import Encoder, label_of
from moco_jax.state import Network, State

FIRST = ("params", "backbone", "conv1", "kernel")  # the first convolution (h, w, in, out) of a ResNet

Trees = dict[str, Any]  # {"params": {"backbone"[, "head"]}, "batch_stats": {...}} of numpy


class Weights(NamedTuple):
    """An encoder to start from."""

    trees: Trees
    label: str
    model: Model | None  # None: an encoder of a user's own
    channels: int
    seen: dict[str, Any]  # what it expects of images, by key of `data`; empty: nobody says
    about: dict[str, Any]  # path, layout and digest; of a run its step
    assumed: bool = False  # whether nothing in it says so: it is what images of its kind usually are


class Start(NamedTuple):
    """What a run begins with, and what is said of it."""

    trees: Trees | None  # None: random weights, or a checkpoint's
    about: dict[str, Any] | None  # for checkpoints; None: it begins from random weights
    lines: list[str]
    warnings: list[str]
    origin: dict[str, Any] | None = None  # for checkpoints: what a run was converted from, by `checkpoints.origin`


def begin(
    config: Config,
    encoder: Encoder,
    values: Values,
    *,
    stored: Mapping[str, Any] | None,
    step: int,
    where: str,
    given: bool = False,
) -> Start:
    """The start of a run of a resolved config; `stored` is what its folder `where` says of itself, at `step`.

    Nothing is compiled and nothing written. From step 1 on the checkpoint decides: weights that are still there are
    compared with those that the run began with, and may have moved or gone. `given`: the encoder is a user's own.
    Raises ConfigError for weights that cannot be read, do not fit, or are others than the run began with.
    """
    asked = config.train.init_from
    began = None if stored is None else stored.get("init")
    if stored is not None and (asked is None) != (began is None):
        ours, theirs = (f"{path}" if path else "random weights" for path in (asked, began and began["path"]))
        raise ConfigError(
            f"{where} holds a run that began from {theirs}, this one begins from {ours} (train.init_from): use another "
            "--workdir, or undo the change"
        )
    if asked is None:
        return Start(None, None, [], [])
    if step and began is not None:
        return Start(None, dict(began), _compared(asked, began, where), [])
    found = read(asked, step=None if began is None else began["step"])
    if began is not None:
        _check_same(found, began, where)
    trees, lines = fitted(found, encoder, config, values, given=given)
    return Start(trees, found.about, lines, _warnings(found, config, values))


def born(init: Callable[[], State], start: Start) -> State:
    """The state at step 0, on all devices; an error where processes read different weights."""
    if start.trees is None:
        return parallel.born(init)
    state: State = parallel.born(into(init), None, start.trees)
    parallel.check_identical(state)
    return state


def into(init: Callable[[], State]) -> Callable[[Trees], State]:
    """(weights) -> the state of `init` with them in both networks: to be born, so that no buffer is shared."""

    def begun(trees: Trees) -> State:
        state = init()

        def network(old: Network) -> Network:
            new = {name: {**getattr(old, name), **trees[name]} for name in ("params", "batch_stats")}
            return Network(**jax.tree.map(jnp.copy, new))  # a copy each: the step donates both

        target = None if state.target is None else network(state.target)
        return state.replace(online=network(state.online), target=target)

    return begun


def read(path: str, *, step: int | None = None) -> Weights:
    """The weights of a file, or of a run's online encoder at its newest checkpoint (or that of `step`).

    Raises ConfigError where there are none.
    """
    place = places.at(path).expanduser()
    try:
        return _of_file(place, path) if reading.is_foreign(place) else _of_run(place, path, step)
    except ConfigError as error:
        raise ConfigError(f"train.init_from={path}: {error}") from None


def _of_file(place: Path, path: str) -> Weights:
    found = reading.read(place)
    online, pixels, layout = found.online, found.pixels, found.layout
    seen: dict[str, Any] = {}
    if found.ours is not None:
        seen = _seen(found.ours.config, found.ours.about["values"])
    elif pixels is not None:
        seen = {"range": pixels.range, "mean": pixels.mean, "std": pixels.std}
    trees = weights.network(online)
    about: dict[str, Any] = {"path": path, "layout": layout, "digest": digest(trees), "step": None}
    about["origin"] = origin.of_file(found)._asdict()
    return Weights(trees, layout, online.model, online.channels, seen, about, found.assumed)


def _of_run(run: Path, path: str, step: int | None) -> Weights:
    with Store(checkpoints_of(run), read_only=True) as store:
        at = store.latest() if step is None else step
        if at is None:
            raise none_yet(run)
        if not store.holds(at):
            raise ConfigError(f"{run} holds step {at}, from which the run began, no more: it has trained on since")
        about, online = store.about(at), store.tree(at)["online"]
    config, label, values = read_stored(about["config"]), about["objects"]["encoder"], about["values"]
    trees = {name: dict(online.get(name) or {}) for name in ("params", "batch_stats")}
    model = config.model if label == label_of(config.model) else None
    said = {"path": path, "layout": f"a run's folder, step {at}", "digest": digest(trees), "step": at}
    said["origin"] = origin.of_run(about, at)._asdict()
    return Weights(trees, label, model, values["channels"], _seen(config, values), said)


def _seen(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    return {"range": (values["low"], values["high"]), "mean": config.data.mean, "std": config.data.std}


def digest(trees: Trees) -> str:
    """SHA-256 over names, dtypes and values of every leaf: the same from a run's folder and from a file of it."""
    out = hashlib.sha256()
    for name, leaf in sorted(traverse_util.flatten_dict(trees, sep="/").items()):
        value = np.ascontiguousarray(leaf)
        out.update(f"{name} {value.dtype} {value.shape}\0".encode() + value.tobytes())
    return out.hexdigest()


def _check_same(found: Weights, began: Mapping[str, Any], where: str) -> None:
    if found.about["digest"] != began["digest"]:
        raise ConfigError(
            f"{where} holds a run that began from other weights than those of {found.about['path']} (then "
            f"{began['path']}, {began['layout']}): use another --workdir, or give the same ones as train.init_from"
        )


def _compared(asked: str, began: Mapping[str, Any], where: str) -> list[str]:
    """Where the weights that are asked for can be read, they are those that the run began with; or why they are not."""
    try:
        found = read(asked, step=began["step"])
    except (ConfigError, OSError) as error:
        reason = " ".join(str(error).split())
        return [f"train.init_from is not compared with what the run began with, which the checkpoint holds: {reason}"]
    _check_same(found, began, where)
    return []


def fitted(
    found: Weights, encoder: Encoder, config: Config, values: Values, *, given: bool = False
) -> tuple[Trees, list[str]]:
    """The weights as the run's encoder takes them, in its dtypes, and what was done to them, line by line.

    Raises ConfigError for another encoder, a head that does not fit, and channels that no rule carries over.
    """
    path = found.about["path"]
    if given or found.model is None:
        if found.label != encoder.label:
            raise ConfigError(
                f"train.init_from={path} holds encoder {found.label!r}, and the run has {encoder.label!r}: weights of "
                "an encoder of one's own start a run with the same one"
            )
    else:
        _check_backbone(found.model, config.model, path)
    has_head = any("head" in tree for tree in found.trees.values())
    trees, lines = {k: dict(v) for k, v in found.trees.items()}, []
    if not config.train.init_head or not has_head:
        for tree in trees.values():
            tree.pop("head", None)
        why = "train.init_head=False" if not config.train.init_head else "the weights have none"
        lines.append(f"the projection head starts anew, from the seed ({why})")
    elif found.model is not None and not given:
        _check_head(found.model, config.model, path)
    if found.channels != values.channels and found.model is not None and not given:
        trees, line = _carried(trees, found.channels, values.channels, path)
        lines.append(line)
    named = "backbone and head" if any("head" in tree for tree in trees.values()) else "backbone"
    lines.insert(0, f"starting from the {named} of {path} ({found.about['layout']}), both encoders alike")
    like = jax.eval_shape(lambda: encoder.init(key(config.seed, 0, INIT)))
    placed, rounded = _placed(trees, like, path)
    if rounded:
        lines.append(f"the weights are {rounded}: rounded to the dtype of the run's parameters")
    return placed, lines


def _check_backbone(theirs: Model, ours: Model, path: str) -> None:
    wrong = [name for name in ("arch", "stem", "width") if getattr(theirs, name) != getattr(ours, name)]
    if wrong:
        have = ", ".join(f"{name} {getattr(theirs, name)}" for name in wrong)
        need = ", ".join(f"{name} {getattr(ours, name)}" for name in wrong)
        flags = " ".join(f"--config.model.{name}={getattr(theirs, name)}" for name in wrong)
        raise ConfigError(f"train.init_from={path} holds a backbone of {have}, and the config has {need}; use {flags}")


def _check_head(theirs: Model, ours: Model, path: str) -> None:
    wrong = [name for name in ("head", "dim") if getattr(theirs, name) != getattr(ours, name)]
    if wrong:
        flags = " ".join(f"--config.model.{name}={getattr(theirs, name)}" for name in wrong)
        raise ConfigError(
            f"train.init_from={path} has a projection head {theirs.head} of dim {theirs.dim}, and the config has "
            f"{ours.head} of dim {ours.dim}; use {flags}, or start it anew by --config.train.init_head=False"
        )


def _carried(trees: Trees, have: int, need: int, path: str) -> tuple[Trees, str]:
    """The first convolution for other channels, by timm's rule: what it says of an image that is gray stays the same.

    One channel: the sum over RGB. C channels: those of RGB in turn, times 3 / C. ConfigError from other than 3.
    """
    if have != 3:
        raise ConfigError(
            f"train.init_from={path} is for images of {have} channels, and the run's have {need}: a first convolution "
            "is carried over from 3 channels alone"
        )
    flat = traverse_util.flatten_dict(trees)
    kernel = np.asarray(flat[FIRST])  # (h, w, 3, out)
    if need == 1:
        flat[FIRST], how = kernel.sum(2, keepdims=True), "its sum over red, green and blue"
    else:
        flat[FIRST] = kernel[:, :, np.arange(need) % 3] * kernel.dtype.type(3 / need)
        how = f"those of red, green and blue in turn, times 3/{need}"
    return traverse_util.unflatten_dict(flat), f"the first convolution, of 3 channels, begins on {need} as {how}"


def _placed(trees: Trees, like: Trees, path: str) -> tuple[Trees, str]:
    """The leaves in the dtypes of `like`, and from which wider ones they were rounded; ConfigError for other leaves."""
    parts = {name: {k: v for k, v in tree.items() if k in trees["params"]} for name, tree in like.items()}
    wanted, have = (traverse_util.flatten_dict(tree) for tree in (parts, trees))
    for name in sorted(wanted.keys() ^ have.keys()):
        side = "lacks" if name in wanted else "has, and the run's encoder lacks,"
        raise ConfigError(f"train.init_from={path} {side} {'/'.join(name)}")
    for name, leaf in wanted.items():
        if have[name].shape != leaf.shape:
            raise ConfigError(
                f"train.init_from={path}: {'/'.join(name)} is {have[name].shape}, and the run's is {leaf.shape}"
            )
    for name, leaf in have.items():
        if not np.isfinite(leaf).all():
            raise ConfigError(f"train.init_from={path}: {'/'.join(name)} holds numbers that are not finite")
    wide = {str(have[n].dtype) for n, leaf in wanted.items() if have[n].dtype.itemsize > leaf.dtype.itemsize}
    cast = {name: np.ascontiguousarray(have[name], leaf.dtype) for name, leaf in wanted.items()}
    return {"batch_stats": {}} | traverse_util.unflatten_dict(cast), ", ".join(sorted(wide))


def _warnings(found: Weights, config: Config, values: Values) -> list[str]:
    """A line where the run's images are standardised otherwise than those that the weights were trained on."""
    ours = {"range": (values.low, values.high), "mean": config.data.mean, "std": config.data.std}
    if found.channels != values.channels:  # mean and std are of other channels then
        ours = {"range": ours["range"]}
    other = [name for name, mine in ours.items() if name in found.seen and not _alike(found.seen[name], mine)]
    if not other:
        return []
    told = ", ".join(f"data.{name} {found.seen[name]} (here {ours[name]})" for name in other)
    flags = " ".join(f"--config.data.{name}='{found.seen[name]}'" for name in other)
    trained = "says nothing of its images, and its kind is usually" if found.assumed else "was"
    return [f"{found.about['path']} {trained} trained on images with {told}: features begin as others, unless {flags}"]


def _alike(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Equal, where one number stands for all channels."""
    return bool(np.allclose(a, b, rtol=1e-3, atol=0)) if len(a) in (1, len(b)) or len(b) == 1 else False
