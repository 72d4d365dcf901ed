"""The schema of evaluations: every key, its type, its default and what it means, as `config.py` is that of a run."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from ml_collections import ConfigDict

from moco_jax import schema
from moco_jax.schema import ConfigError, unknown


@dataclass(frozen=True)
class Labelled:
    """Which labelled images a classifier is fitted to, and which it is judged on."""

    dataset: str | None = None  # a TFDS name, or a path to a folder or .csv (None: as the encoder was trained on)
    data_dir: str | None = None  # TFDS data directory of `dataset` (None: that of the training data)
    image_feature: str | None = None  # of a TFDS data set (None: as trained on; "image" in another data set)
    label_feature: str | None = None  # of a TFDS data set (None: data.label_feature of the run; "label" in another)
    train_split: str = "train"  # images it is fitted to, in TFDS's split language
    test_split: str | None = "test"  # images it is judged on; None: whole groups of train_split, set apart by seed
    test_share: float = 0.2  # share of train_split that is set apart where test_split is None
    shared_groups: bool = False  # True: the same group (patient, place) may be on both sides, which flatters
    workers: int = 2  # decoding threads


@dataclass(frozen=True)
class Views:
    """What a classifier sees while it is fitted; it is always judged on centre views."""

    recipe: str | None = None  # a name in views/recipes.py, its first view; None: centre views, encoded once
    size: int | None = None  # side of a view in pixels (None: as the encoder was trained)
    resize: int | None = None  # shorter side before a centre view is cut (None: as the encoder's eval.resize)
    filter: str | None = None  # bilinear or bicubic, by which it is resized (None: as the encoder's)
    path: str | None = None  # resident: images live on the device; streamed: the host crops (None: as the encoder's)


@dataclass(frozen=True)
class Linear:
    """A linear classifier on a frozen encoder by SGD: the published protocol (`moco-jax eval-linear`)."""

    protocol: str = "linear"  # which evaluation the page is of; not to be changed
    seed: int = 0  # of the order of the images, their views, and the classifier's start
    feature: str = "backbone"  # backbone (pooled) or head (what the loss compared)
    batch_size: int = 256  # G, over all devices; the tail of an epoch is padded, and counts for nothing
    epochs: int = 100  # passes over the labelled images
    learning_rates: tuple[float, ...] = (30.0,)  # one classifier each, all in one pass
    momentum: float = 0.9  # of SGD
    weight_decay: float = 0.0  # added to every gradient as weight_decay * parameter
    schedule: str = "step"  # step or cosine, both constant within an epoch
    milestones: tuple[int, ...] = (60, 80)  # step: epochs at which the rate falls; cosine: none
    milestone_factor: float = 0.1  # step: what the rate is multiplied by at each milestone
    holdout: float = 0.0  # share of the train labels that choose rate and epoch; 0: the first rate, the last epoch
    test_every_epochs: int = 1  # how often the test images are judged, for the best epoch; 0: after the last alone
    save_every_epochs: int = 10  # how often the state is saved, to continue from; the last step always is
    untrained: bool = False  # also the encoder as it was before its training, for comparison
    data: Labelled = field(default_factory=Labelled)
    views: Views = field(default_factory=Views)


@dataclass(frozen=True)
class Fit:
    """How a whole network is trained on labels."""

    batch_size: int = 256  # G, over all devices; what fills up an epoch's tail counts in trained batch norm alone
    epochs: int = 100  # passes over the labelled images
    least_steps: int = 0  # few labels are passed over more often, until there were that many steps (cosine only)
    learning_rate: float = 0.01  # of the backbone's last stage, and of all below it where layer_decay is 1
    head_learning_rate: float = 1.0  # of the classifier
    scratch_learning_rate: float = 0.1  # of everything, in a network that starts from nothing
    layer_decay: float = 1.0  # the rate of each stage as a share of that above it
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4  # added to every gradient as weight_decay * parameter
    schedule: str = "cosine"  # step or cosine, both constant within an epoch
    milestones: tuple[int, ...] = ()  # step: epochs at which the rate falls; cosine: none
    milestone_factor: float = 0.1  # step: what the rate is multiplied by at each milestone
    batch_norm: str = "train"  # train: statistics of the batch; frozen: running ones, which stay (never from scratch)
    group_size: int | None = None  # images that share batch statistics (None: as the encoder was trained)


@dataclass(frozen=True)
class Finetune:
    """The whole network trained on labels, from an encoder or from nothing (`moco-jax finetune`)."""

    protocol: str = "finetune"  # which evaluation the page is of; not to be changed
    seed: int = 0  # of labels drawn, order, views, and the start of what is not taken over
    start: str = "encoder"  # encoder: its weights; scratch: the same network from random ones
    labels: str = "all"  # all; a number per class such as 10; a share such as 1%; or a file with one name per line
    draws: int = 1  # how often labels are drawn anew, each time by a seed of its own
    test_every_epochs: int = 0  # how often the test images are judged, for the best epoch; 0: after the last alone
    save_every_epochs: int = 10  # how often the state is saved, to continue from; the last step always is
    data: Labelled = field(default_factory=Labelled)
    views: Views = field(default_factory=Views)
    fit: Fit = field(default_factory=Fit)


@dataclass(frozen=True)
class Knn:
    """Weighted nearest neighbours of a frozen encoder's features (`moco-jax knn`)."""

    protocol: str = "knn"  # which evaluation the page is of; not to be changed
    k: tuple[int, ...] = (10, 20, 100, 200)  # neighbours that vote
    temperature: float = 0.1  # weight of a neighbour: exp(similarity / temperature)
    features: tuple[str, ...] = ("backbone", "head")  # pooled, and what the loss compared
    batch_size: int = 256  # images encoded per call; the tail is padded and cut off again
    queries: int = 256  # images classified per call
    bank: int = 65536  # labelled features compared with per call
    data: Labelled = field(default_factory=Labelled)


@dataclass(frozen=True)
class Transfer:
    """Encoders beside pixels, no training and plain supervised training, in one table (`moco-jax transfer`)."""

    protocol: str = "transfer"  # which evaluation the page is of; not to be changed
    seed: int = 0  # of the draws of labels
    labels: tuple[str, ...] = ("1", "5", "10", "100")  # few labels: numbers per class, shares such as 1%, or files
    draws: int = 10  # paired draws of the few labels: the same images for every row
    k: int = 20  # kNN: neighbours that vote
    temperature: float = 0.1  # kNN: weight of a neighbour: exp(similarity / temperature)
    penalty: float = 1.0  # linear: C of scikit-learn's LogisticRegression, on standardised features
    pixels: int = 32  # side to which centre views are resized for the row of pixels, if they are larger
    finetune: bool = True  # also columns of fine-tuning, and a row that is supervised from scratch
    batch_size: int = 256  # images encoded per call; the tail is padded and cut off again
    data: Labelled = field(default_factory=Labelled)
    views: Views = field(default_factory=Views)  # size and resize of all rows; recipe and path of whole networks
    fit: Fit = field(default_factory=Fit)


PROTOCOLS: dict[str, type] = {"linear": Linear, "finetune": Finetune, "knn": Knn, "transfer": Transfer}
Protocol = TypeVar("Protocol", Linear, Finetune, Knn, Transfer)


def page(name: str) -> ConfigDict:
    """A complete, typed, locked ConfigDict of a protocol in PROTOCOLS, to be edited by a config page."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return schema.to_dict(PROTOCOLS[name]()).lock()


def read(values: ConfigDict | dict[str, Any], kind: type[Protocol]) -> Protocol:
    """The protocol that a page and flags describe; ConfigError for the page of another, naming the key otherwise."""
    values = schema.plain(values)
    wanted = next(name for name, cls in PROTOCOLS.items() if cls is kind)
    if values.get("protocol") != wanted:
        found = f"an evaluation {values['protocol']!r}" if "protocol" in values else "a training run"
        raise ConfigError(f"this is the page of {found}; here one of {wanted!r} is needed, such as {EXAMPLES[wanted]}")
    return schema.read(kind, values)


EXAMPLES = {"linear": "linear_digits", "finetune": "finetune", "knn": "knn", "transfer": "transfer"}
