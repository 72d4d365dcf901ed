"""The schema of a run: every key, its type, its default and what it means, in one place.

A config page (`configs/*.py`) calls `page(mechanism)` and edits the ConfigDict it gets; flags override that; `read`
turns it into the frozen dataclasses below, once. Everything else receives plain values. Nothing here imports JAX.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict, config_dict


class ConfigError(ValueError):
    """Something the user wrote cannot be run; the message says what, the numbers, and what to do."""


@dataclass(frozen=True)
class Data:
    """Which images, what their values mean, and how they reach the device."""

    # Exactly one of these four says where the images are.
    dataset: str | None = "digits"  # a TFDS data set prepared as array_record; "digits" comes with scikit-learn
    folder: str | None = None  # a folder of images, of class folders, or of split folders (train, val) of either
    manifest: str | None = None  # a CSV file with a column path, and perhaps label, group, split
    array: str | None = None  # an .npy file of images (N, H, W, C) or (N, H, W)
    data_dir: str | None = None  # TFDS data directory (None: TFDS's own default)
    split: str = "train"  # images to train on, in TFDS's split language
    channels: int | None = None  # None: as stored; 3 or 1 convert 8-bit images as Pillow does
    range: tuple[float, float] | None = None  # stored values mapped to 0..1, not clipped (None: 0..255, for uint8 only)
    mean: tuple[float, ...] = (0.5,)  # per channel, of values mapped to 0..1
    std: tuple[float, ...] = (0.5,)  # per channel, of values mapped to 0..1
    path: str = "resident"  # resident: images live on the device; streamed: the host decodes and crops
    workers: int = 2  # decoding threads per process
    pairs: str = "same_image"  # what is positive: same_image, or same_group (another image of the same group)
    max_gap: int | None = None  # same_group: places apart in a group's order, as of frames, at most (None: any)


@dataclass(frozen=True)
class Views:
    """How two views of an image are made."""

    recipe: str = "digits"  # a name in views/recipes.py: crop and augmentation, one per view
    size: int = 16  # side of a view in pixels


@dataclass(frozen=True)
class Model:
    """The encoder: backbone, global average pooling, projection head."""

    arch: str = "resnet_tiny"  # resnet_tiny, resnet18, 34, 50, 101, 152
    stem: str = "cifar"  # imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1, no pool
    width: int = 32  # channels of the first stage (64 in the published ResNets)
    head: str = "mlp"  # linear (MoCo v1) or mlp (MoCo v2)
    dim: int = 128  # C, the feature dimension that is compared
    dtype: str = "auto"  # compute: auto (bfloat16 on GPU and TPU, float32 on CPU), float32, bfloat16, float64


@dataclass(frozen=True)
class BatchNorm:
    """Whose statistics an image is normalised with."""

    group_size: int = 32  # images that share batch statistics (32 in the paper: 256 on 8 GPUs); 0: the global batch


@dataclass(frozen=True)
class Moco:
    """Momentum contrast: the target encoder and the loss."""

    momentum: float = 0.999  # m: the target keeps this share of itself at each step
    temperature: float = 0.07  # T
    symmetric: bool = False  # also match view 1 to view 0: sum of both losses, 2G keys enqueued per step


@dataclass(frozen=True)
class Queue:
    """The dictionary of negatives."""

    size: int | None = None  # K; None: largest power of two up to a quarter of the images, at most 65,536
    mask_same_image: bool = False  # leave out of a query's negatives the old keys of its own image


@dataclass(frozen=True)
class Shuffle:
    """Key images move between batch-norm groups, so that statistics do not tell a query its own key."""

    block: int | None = None  # images permuted among themselves; None: up to 256; 0: off (keys leak)


@dataclass(frozen=True)
class Optimizer:
    """SGD with momentum and coupled weight decay on every parameter."""

    learning_rate: float = 0.03  # for the global batch as it is, unless linear_scaling
    linear_scaling: bool = False  # multiply the learning rate by batch_size / 256
    momentum: float = 0.9  # share of the last update that goes on
    weight_decay: float = 1e-4  # added to every gradient as weight_decay * parameter
    schedule: str = "cosine"  # cosine or step, both constant within an epoch as published
    milestones: tuple[int, ...] = ()  # step: epochs at which the rate falls to a tenth; cosine: none


@dataclass(frozen=True)
class Train:
    """How long, and how a step is spread over the hardware."""

    epochs: int = 200  # of whole batches; the cosine schedule ends there, so a run cannot be lengthened
    microbatch_size: int | None = None  # images per device encoded at once (None: all of them)
    steps_per_call: int = 1  # steps per dispatch (GPU, TPU): a divisor of log.every_steps, or shorter calls compile too


@dataclass(frozen=True)
class Eval:
    """Weighted kNN inside the loop, on labels that training never sees."""

    every_epochs: int = 10  # 0: never
    data: str | None = None  # labelled data: a TFDS name, or a path to a folder, .csv or .npy (None: as trained on)
    data_dir: str | None = None  # TFDS data directory of `eval.data` (None: as data.data_dir)
    bank_split: str = "train"  # labelled neighbours
    split: str = "test"  # images to classify
    k: int = 200  # neighbours
    temperature: float = 0.1  # weight of a neighbour: exp(similarity / temperature)
    feature: str = "backbone"  # backbone (pooled) or head (what the loss compares)
    resize: int | None = None  # shorter side before the centre crop to views.size (None: views.size)
    batch_size: int = 256  # images per call; the tail is padded and masked


@dataclass(frozen=True)
class Leak:
    """The alarm for keys that batch-norm statistics give away; it needs no labels."""

    every_epochs: int = 10  # look for leaking keys that often; 0: never
    margin: float = 0.1  # warn where pretext accuracy falls by more than this, with keys among other images


@dataclass(frozen=True)
class Consistency:
    """Are stored keys what today's target would say? The images behind some are encoded again; no labels needed."""

    every_epochs: int = 10  # 0: never


@dataclass(frozen=True)
class Checkpoint:
    """When the state is written."""

    every_epochs: int = 10  # the last step is always written
    keep: int = 2  # newest checkpoints kept


@dataclass(frozen=True)
class Log:
    """When metrics are fetched and written."""

    every_steps: int = 10  # a line holds the means over these steps; the first step gets one of its own
    tensorboard: bool = False  # also write event files for TensorBoard, into WORKDIR/tensorboard


@dataclass(frozen=True)
class Config:
    """A pretraining run. Sections of a mechanism that is not used are None and cannot be written.

    The sections of moco have defaults, as it is the default; those of any other mechanism default to None.
    """

    mechanism: str = "moco"  # set by the page, not by a flag: it decides which sections exist
    seed: int = 0  # 0 to 2**32 - 1; with the step, the source of every random draw
    batch_size: int = 256  # G, over all devices
    data: Data = field(default_factory=Data)
    views: Views = field(default_factory=Views)
    model: Model = field(default_factory=Model)
    bn: BatchNorm = field(default_factory=BatchNorm)
    moco: Moco | None = field(default_factory=Moco)
    queue: Queue | None = field(default_factory=Queue)
    shuffle: Shuffle | None = field(default_factory=Shuffle)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    leak: Leak = field(default_factory=Leak)
    consistency: Consistency = field(default_factory=Consistency)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)


@dataclass(frozen=True)
class Probe:
    """A linear probe of a frozen encoder beside raw pixels and the untrained encoder (`eval_linear.py`)."""

    dataset: str | None = None  # labelled data: a TFDS name, or a path to a folder or .csv (None: as trained on)
    data_dir: str | None = None  # TFDS data directory of `dataset` (None: that of the training data)
    train_split: str = "train"  # labelled images the classifier is fitted to
    test_split: str = "test"  # images it is judged on
    labels_per_class: int = 10  # few-label table: labels drawn per class
    draws: int = 20  # paired draws of the few labels: the same images for every row
    penalty: float = 1.0  # C of scikit-learn's LogisticRegression, on standardised features
    seed: int = 0  # of the draws
    batch_size: int = 256  # images encoded per call; the tail is padded and cut off again


# The sections that belong to one mechanism; every other section belongs to all.
SECTIONS: dict[str, tuple[str, ...]] = {"moco": ("moco", "queue", "shuffle")}


def page(mechanism: str = "moco") -> ConfigDict:
    """A complete, typed, locked ConfigDict with every default, to be edited by a config page."""
    if mechanism not in SECTIONS:
        raise ConfigError(f"mechanism {mechanism!r} is unknown; one of: {', '.join(SECTIONS)}")
    sections = {name: section_of(name)() for name in SECTIONS[mechanism]}
    return _to_dict(dataclasses.replace(Config(), mechanism=mechanism, **sections), _unused(mechanism)).lock()


def section_of(name: str) -> type:
    """The dataclass of a section of a training page, such as BatchNorm for "bn"."""
    kind = typing.get_type_hints(Config)[name]
    return typing.cast(type, _optional(kind) or kind)


def probe_page() -> ConfigDict:
    """The same for a linear probe."""
    return _to_dict(Probe(), ()).lock()


def read(values: ConfigDict | dict[str, Any]) -> Config:
    """The config that a page, flags or a checkpoint's JSON describe; raises ConfigError naming the key."""
    values = _plain(values)
    if "mechanism" not in values:
        raise ConfigError(
            "this is no page of a training run: it has no key 'mechanism' (a probe's page? see eval-linear)"
        )
    mechanism = values["mechanism"]
    if mechanism not in SECTIONS:
        raise ConfigError(f"mechanism {mechanism!r} is unknown; one of: {', '.join(SECTIONS)}")
    return _read(Config, values, "", frozenset(_unused(mechanism)))


def read_stored(values: dict[str, Any]) -> Config:
    """The config in a checkpoint, perhaps of an older version: a key that it lacks has its default.

    The rule behind it: by the default of a new key the state becomes what it became before the key was there.
    """
    complete = to_json(read(page(values["mechanism"])))
    for name, value in values.items():
        complete[name] = complete.get(name, {}) | value if isinstance(value, dict) else value
    return read(complete)


def read_probe(values: ConfigDict | dict[str, Any]) -> Probe:
    """The probe that a page and flags describe; raises ConfigError naming the key."""
    values = _plain(values)
    if "mechanism" in values:
        raise ConfigError("this is the page of a training run; a probe takes one such as linear_digits")
    return _read(Probe, values, "", frozenset())


def to_json(config: Config) -> dict[str, Any]:
    """Nested plain dict of a config, ready for JSON; sections that do not exist are left out."""
    return {k: v for k, v in dataclasses.asdict(config).items() if v is not None}


def flat(config: Config) -> dict[str, Any]:
    """{"section.key": value} of a config."""
    out: dict[str, Any] = {}
    for name, value in to_json(config).items():
        out.update({f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value})
    return out


def unknown(what: str, name: str, known: typing.Iterable[str]) -> ConfigError:
    """The error for a name that is not in a table, with the nearest one that is."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1, 0.5) or [k for k in known if k.split(".")[-1] == name]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = f" (one of: {', '.join(known)})" if len(known) <= 12 else " (--help lists all)"
    return ConfigError(f"{what} {name!r} is unknown{hint}{'' if near and len(known) > 12 else listed}")


def _unused(mechanism: str) -> set[str]:
    return {s for names in SECTIONS.values() for s in names} - set(SECTIONS[mechanism])


def _to_dict(section: Any, skip: typing.Iterable[str]) -> ConfigDict:
    out = ConfigDict()
    hints = typing.get_type_hints(type(section))
    for f in dataclasses.fields(section):
        if f.name in skip:
            continue
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            out[f.name] = _to_dict(value, ())
        elif _optional(hints[f.name]) is not None:  # None now, yet typed for an override
            kind = _optional(hints[f.name])
            out[f.name] = config_dict.FieldReference(value, field_type=typing.get_origin(kind) or kind)
        else:
            out[f.name] = value
    return out


def _optional(hint: Any) -> Any:
    """The X of `X | None`, or None."""
    if isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return None


def _plain(values: Any) -> dict[str, Any]:
    return values.to_dict() if isinstance(values, ConfigDict) else dict(values)


def _read(cls: type, values: dict[str, Any], path: str, skip: frozenset[str]) -> Any:
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls) if f.name not in skip]
    for name in values:
        if name not in known:
            raise unknown("config key", path + name, [path + k for k in known])
    for name in known:
        if name not in values:
            raise ConfigError(f"config key '{path}{name}' is missing; config pages start from moco_jax.config.page()")
    read = {name: _typed(hints[name], values[name], path + name) for name in known}
    return cls(**read, **dict.fromkeys(skip))


def _typed(hint: Any, value: Any, path: str) -> Any:
    """`value` as `hint` says, without any conversion but int to float and list to tuple."""
    inner = _optional(hint)
    if inner is not None:
        return None if value is None and not dataclasses.is_dataclass(inner) else _typed(inner, value, path)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"config key '{path}' is a section with keys of its own, not {value!r}")
        return _read(typing.cast(type, hint), value, path + ".", frozenset())
    if typing.get_origin(hint) is tuple:
        return _typed_tuple(typing.get_args(hint), value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"config key '{path}' must be {hint.__name__}, not {value!r}")
    return value


def _typed_tuple(kinds: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"config key '{path}' must be a tuple such as (1, 2), not {value!r}")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise ConfigError(f"config key '{path}' must hold {len(kinds)} values, not {len(value)}: {value!r}")
    return tuple(_typed(k, v, path) for k, v in zip(kinds, value, strict=True))
