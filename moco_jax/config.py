"""The schema of a run: every key, its type, its default and what it means, in one place.

A config page (`configs/*.py`) calls `page(mechanism)` and edits the ConfigDict it gets; flags override that; `read`
turns it into the frozen dataclasses below, once. Everything else receives plain values. Nothing here imports JAX.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from moco_jax import schema
from moco_jax.schema import ConfigError, unknown

__all__ = ["ConfigError", "unknown"]  # named here for everything above


@dataclass(frozen=True)
class Data:
    """Which images, what their values mean, and how they reach the device."""

    # Exactly one of these four says where the images are.
    dataset: str | None = "digits"  # a TFDS data set prepared as array_record; "digits" comes with scikit-learn
    folder: str | None = None  # a folder of images, of class folders, or of split folders (train, val) of either
    manifest: str | None = None  # a CSV file with a column path, and perhaps label, group, split
    array: str | None = None  # an .npy file of images (N, H, W, C) or (N, H, W)
    data_dir: str | None = None  # TFDS data directory (None: TFDS's own default)
    image_feature: str = "image"  # of `data.dataset`: where its images are; nested ones as frames/rgb
    label_feature: str = "label"  # of `data.dataset`: where its labels are, if it has any
    split: str = "train"  # images to train on, in TFDS's split language
    channels: int | None = None  # None: as stored; 3 or 1 convert 8-bit images as Pillow does
    range: tuple[float, float] | None = None  # stored values mapped to 0..1, not clipped (None: 0..255, for uint8 only)
    mean: tuple[float, ...] = (0.5,)  # per channel, of values mapped to 0..1
    std: tuple[float, ...] = (0.5,)  # per channel, of values mapped to 0..1
    path: str = "resident"  # resident: images live on the device; streamed: the host decodes and crops
    workers: int = 2  # decoding threads per process
    canvas: int = 0  # streamed: pixels a side of what the device gets, to cut the crops itself (0: the host cuts)
    max_bad_fraction: float = 0.01  # share of files that cannot be read and are replaced; with more the run stops
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
    loss: str = "infonce"  # infonce: which of K + 1 is the key; nce: is each of them the key, or noise
    nce_batches: int = 1  # nce: first batches over which its constant Z is estimated, and then kept


@dataclass(frozen=True)
class EndToEnd:
    """Keys and queries of one batch, by encoders that both get gradients."""

    temperature: float = 0.07  # T
    symmetric: bool = False  # also match view 1 to view 0: sum of both losses
    shared: bool = True  # one encoder makes queries and keys; False: two, equal at the start


@dataclass(frozen=True)
class MemoryBank:
    """A stored feature of every training image; negatives are drawn from them."""

    size: int | None = None  # K: negatives drawn for each query; None: 4,096, or all others where there are fewer
    momentum: float = 0.5  # share of itself that a stored feature keeps when its image is seen
    temperature: float = 0.07  # T
    loss: str = "infonce"  # infonce: which of K + 1 is the key; nce: is each of them the key, or noise
    nce_batches: int = 1  # nce: first batches over which its constant Z is estimated, and then kept
    dtype: str = "float32"  # of the stored features: float32, or bfloat16 for half the memory


@dataclass(frozen=True)
class Queue:
    """The dictionary of negatives."""

    size: int | None = None  # K; None: largest power of two up to a quarter of the images, at most 65,536
    mask_same_image: bool = False  # leave out of a query's negatives the old keys of its own image
    chunk: int | None = None  # rows compared at once, a divisor of K, so that N x K logits never exist (None: all rows)


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

    init_from: str | None = None  # weights to start from: a file of weights, or a run's folder (None: random ones)
    init_head: bool = True  # also take its projection head, if it has one; False: the head starts anew, from the seed
    epochs: int = 200  # of whole batches; the cosine schedule ends there, so a run cannot be lengthened
    microbatch_size: int | None = None  # images per device encoded at once (None: all of them)
    max_skipped: int = 10  # steps in a row that are not finite, and so change nothing, at which the run stops
    heartbeat_seconds: int = 60  # of several processes: one that gives no sign for so long is dead, and all end
    steps_per_call: int = 1  # steps per dispatch (GPU, TPU): a divisor of log.every_steps, or shorter calls compile too


@dataclass(frozen=True)
class Eval:
    """Weighted kNN inside the loop, on labels that training never sees."""

    every_epochs: int = 10  # 0: never
    data: str | None = None  # labelled data: a TFDS name, or a path to a folder, .csv or .npy (None: as trained on)
    data_dir: str | None = None  # TFDS data directory of `eval.data` (None: as data.data_dir)
    image_feature: str | None = None  # of `eval.data` (None: as trained on; "image" in another TFDS data set)
    label_feature: str | None = None  # of `eval.data` (None: data.label_feature; "label" in another TFDS data set)
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
    end_to_end: EndToEnd | None = None
    memory_bank: MemoryBank | None = None
    queue: Queue | None = field(default_factory=Queue)
    shuffle: Shuffle | None = field(default_factory=Shuffle)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    leak: Leak = field(default_factory=Leak)
    consistency: Consistency = field(default_factory=Consistency)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)


# The sections that belong to one mechanism; every other section belongs to all.
SECTIONS: dict[str, tuple[str, ...]] = {
    "moco": ("moco", "queue", "shuffle"),
    "end_to_end": ("end_to_end", "shuffle"),
    "memory_bank": ("memory_bank",),
}


def page(mechanism: str = "moco") -> ConfigDict:
    """A complete, typed, locked ConfigDict with every default, to be edited by a config page."""
    if mechanism not in SECTIONS:
        raise ConfigError(f"mechanism {mechanism!r} is unknown; one of: {', '.join(SECTIONS)}")
    sections = {name: section_of(name)() for name in SECTIONS[mechanism]}
    return schema.to_dict(dataclasses.replace(Config(), mechanism=mechanism, **sections), _unused(mechanism)).lock()


def section_of(name: str) -> type:
    """The dataclass of a section of a training page, such as BatchNorm for "bn"."""
    kind = typing.get_type_hints(Config)[name]
    return typing.cast(type, schema.optional(kind) or kind)


def read(values: ConfigDict | dict[str, Any]) -> Config:
    """The config that a page, flags or a checkpoint's JSON describe; raises ConfigError naming the key."""
    values = schema.plain(values)
    if "mechanism" not in values:
        raise ConfigError("this is no page of a training run: it has no key 'mechanism' (a page of an evaluation?)")
    mechanism = values["mechanism"]
    if mechanism not in SECTIONS:
        raise ConfigError(f"mechanism {mechanism!r} is unknown; one of: {', '.join(SECTIONS)}")
    return schema.read(Config, values, "", frozenset(_unused(mechanism)))


def read_stored(values: dict[str, Any]) -> Config:
    """The config in a checkpoint, perhaps of an older version: a key that it lacks has its default.

    The rule behind it: by the default of a new key the state becomes what it became before the key was there.
    """
    complete = to_json(read(page(values["mechanism"])))
    for name, value in values.items():
        complete[name] = complete.get(name, {}) | value if isinstance(value, dict) else value
    return read(complete)


def to_json(config: Config) -> dict[str, Any]:
    """Nested plain dict of a config, ready for JSON; sections that do not exist are left out."""
    return {k: v for k, v in dataclasses.asdict(config).items() if v is not None}


def flat(config: Config) -> dict[str, Any]:
    """{"section.key": value} of a config."""
    out: dict[str, Any] = {}
    for name, value in to_json(config).items():
        out.update({f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value})
    return out


def _unused(mechanism: str) -> set[str]:
    return {s for names in SECTIONS.values() for s in names} - set(SECTIONS[mechanism])
