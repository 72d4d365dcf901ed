"""The labelled images of an evaluation: what a classifier is fitted to, what it is judged on, and that they differ."""

import hashlib
from typing import NamedTuple

import numpy as np

from moco_jax import protocols
from moco_jax.config import ConfigError, Data
from moco_jax.data import opening, sources
from moco_jax.evaluation import few
from moco_jax.evaluation.encoder import Values


class Split(NamedTuple):
    """Images with their labels (N,) int and, where there are any, groups (N,) int."""

    source: sources.Source
    labels: np.ndarray
    groups: np.ndarray | None


class Pair(NamedTuple):
    """Train and test images; labels lie in 0..classes - 1."""

    train: Split
    test: Split
    classes: int
    class_names: list[str]
    test_is: str  # in words

    @property
    def digest(self) -> str:
        """SHA-256 of what decides a result besides settings and encoder: images, labels and groups of both sides.

        Images are told by the split's name and their own, or else by their places in the data set, not by their pixels.
        """
        out = hashlib.sha256()
        for split in (self.train, self.test):
            origin, names = sources.origin_of(split.source), sources.names_of(split.source)
            told = names if names is not None else () if origin is None else origin.places
            texts = "\0".join([split.source.name, str(len(split.labels)), *map(str, told)])
            for part in (texts.encode("utf-8", "surrogateescape"), _bytes(split.labels), _bytes(split.groups)):
                out.update(len(part).to_bytes(8, "little") + part)  # so that none runs into the next
        return out.hexdigest()


def open_pair(
    data: protocols.Labelled, run: Data, *, seed: int, own_source: str = "", like: Values | None = None
) -> Pair:
    """The two splits that `data` names, or those of the images that the encoder was trained on.

    `own_source` is "" where a config named those; `like` is what the encoder takes. Raises ConfigError, before anything
    is encoded, for images without labels, one class, classes that only the test images have, another kind of images
    than the encoder's, and images or groups on both sides.
    """
    if own_source and data.dataset is None:
        raise ConfigError(
            f"the encoder was trained on a source of your own, {own_source!r}: name labelled data by "
            "--config.data.dataset=NAME"
        )
    if data.dataset is None and not opening.names_images(run):
        raise ConfigError(
            "a file of weights names no images: name labelled data by --config.data.dataset=NAME, a data set, a folder "
            "of class folders, or a .csv with a column label"
        )
    if data.workers < 1:
        raise ConfigError(f"data.workers must be 1 or more, not {data.workers}")
    train = _open(data, run, data.train_split)
    opened = train.source
    if data.test_split is None:
        if not 0 < data.test_share < 1:
            raise ConfigError(f"data.test_share must lie between 0 and 1, not {data.test_share}")
        called = sources.class_names_of(train.source)
        kept, held = few.holdout(train.labels, train.groups, data.test_share, seed=seed, class_names=called)
        train, test = _part(train, kept), _part(train, held)
        how = "by whole groups" if train.groups is not None else "by class"
        test_is = f"{100 * len(held) / (len(kept) + len(held)):.3g}% of {data.train_split} set apart {how}, seed {seed}"
    else:
        test = _open_test(data, run, data.test_split)
        test_is = f"split {data.test_split}"
    _check_images(train, test, data)
    _check_groups(train, test, data)
    if not own_source and opening.names_images(run):
        seen = pretrained(test.source, data, run, opened)
        if isinstance(seen, str):
            test_is += f"; whether it was pretrained on is not known ({seen})"
        elif seen:
            test_is += f"; {seen:,} of its {len(test.labels):,} images were pretrained on, without labels"
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    names = sources.class_names_of(train.source)
    names = list(map(str, range(classes))) if names is None else list(names)
    _check_classes(train, test, names)
    for split in (train, test):
        _check_kind(split, like)
    return Pair(train, test, max(classes, len(names)), names, test_is)


def _open(data: protocols.Labelled, run: Data, split: str) -> Split:
    source = opening.open_split(
        run,
        split,
        name=data.dataset,
        data_dir=data.data_dir,
        features=(data.image_feature, data.label_feature),
    )
    labels = source.labels()
    if labels is None:
        raise ConfigError(
            f"{source.name} has no labels; an evaluation needs some: --config.data.dataset names a data set, a folder "
            "of class folders, or a .csv with a column label, and --config.data.label_feature another feature of TFDS's"
        )
    if len(source) == 0:
        raise ConfigError(f"{source.name} holds no images")
    groups, names = sources.groups_of(source), sources.group_names_of(source)
    if names is not None and names == sources.class_names_of(source):
        groups = None  # folders of classes: every one is a group of its own, and is on both sides
    return Split(source, labels, groups)


def _open_test(data: protocols.Labelled, run: Data, split: str) -> Split:
    """The test split; ConfigError that says how to do without, where it is not there or has no images."""
    try:
        return _open(data, run, split)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; --config.data.test_split names another, and --config.data.test_split=None sets a share of "
            f"{data.train_split!r} apart"
        ) from None


def _bytes(numbers: np.ndarray | None) -> bytes:
    return b"-" if numbers is None else np.ascontiguousarray(numbers, np.int64).tobytes()


def _part(split: Split, rows: np.ndarray) -> Split:
    groups = None if split.groups is None else split.groups[rows]
    return Split(sources.Subset(split.source, rows), split.labels[rows], groups)


def _check_images(train: Split, test: Split, data: protocols.Labelled) -> None:
    """No image on both sides, as far as the sources can tell."""
    both = sources.shared(test.source, train.source)
    if both is None and data.train_split == data.test_split:
        raise ConfigError(
            f"data.train_split and data.test_split are both {data.train_split!r}; data.test_split=None sets a "
            "share apart"
        )
    if both is not None and len(both):
        raise ConfigError(
            f"{len(both)} images are on both sides, such as {sources.record(test.source, int(both[0]))} of the "
            f"{len(test.labels)} test images: name splits that share none as data.train_split and data.test_split, or "
            "one without repeats as data.train_split and data.test_split=None, which sets a share of it apart"
        )


def pretrained(
    test: sources.Source, data: protocols.Labelled, run: Data, opened: sources.Source | None = None
) -> int | str:
    """How many test images a run saw without labels; where that cannot be known, why, in words.

    `opened` is data.train_split, whole, of the run's own images, where it is open already.
    """
    same = opened is not None and data.dataset is None and data.train_split == run.split
    try:
        own = opened if same else opening.own_split(run, name=data.dataset, data_dir=data.data_dir)
    except (ConfigError, OSError) as error:
        return str(error)
    if own is None:
        return 0
    seen = sources.shared(test, own)
    return f"{test.name} or {own.name} does not say which records it holds" if seen is None else len(seen)


def _check_groups(train: Split, test: Split, data: protocols.Labelled) -> None:
    """No group on both sides, unless that is allowed."""
    if train.groups is None or test.groups is None or data.shared_groups:
        return
    shared = _named(train) & _named(test)
    if shared:
        raise ConfigError(
            f"{len(shared)} groups are on both sides, such as {min(shared)}: what is tested was partly seen; set whole "
            "groups apart by data.test_split=None, or allow it by data.shared_groups=True"
        )


def _named(split: Split) -> set[str]:
    """The names of a split's groups, or their numbers."""
    assert split.groups is not None
    names = sources.group_names_of(split.source)
    return {str(g) if names is None else names[g] for g in np.unique(split.groups).tolist()}


def _check_classes(train: Split, test: Split, names: list[str]) -> None:
    seen, asked = np.unique(train.labels), np.unique(test.labels)
    if len(seen) < 2:
        raise ConfigError(f"{train.source.name} holds one class alone; a classifier needs two or more")
    unseen = np.setdiff1d(asked, seen)
    if len(unseen):
        listed = ", ".join(names[c] if c < len(names) else str(c) for c in unseen[:3].tolist())
        raise ConfigError(
            f"{len(unseen)} classes of {test.source.name} have no train image ({listed}): no classifier can name them; "
            "add some, or leave those test images out"
        )


def _check_kind(split: Split, like: Values | None) -> None:
    image = sources.read(split.source, 0)
    if like is not None and (image.shape[2], str(image.dtype)) != (like.channels, like.dtype):
        raise ConfigError(
            f"{split.source.name} holds {image.dtype} images of {image.shape[2]} channels, and the encoder takes "
            f"{like.dtype} of {like.channels}: evaluate it on images of its own kind"
        )
