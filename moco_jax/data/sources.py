"""What a source of images is, how one is read, and what can be asked of any."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from moco_jax.config import ConfigError
from moco_jax.data.pixels import DTYPES, STORED, Unreadable


class ReadError(OSError):
    """A source failed to give one of its images; the message names the record."""


@runtime_checkable
class Source(Protocol):
    """Images by number: what `opening.open_split` returns, and all that a user's own object has to offer.

    It may also have `names() -> list of str`, `groups() -> (len,) integers`, `origin() -> Origin or None`,
    `labels_of(rows) -> (n,) integers` where labels are slow to read, and `class_names` and `group_names`, lists of str
    or None.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> int | None: ...  # how many, where labels are classes

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """Image `index`, (H, W, C), in its storage dtype: uint8, uint16 or float32. Called from several threads.

        Raise `pixels.Unreadable` for an image that is damaged for good: training shows another one in its place, up to
        data.max_bad_fraction. Anything else that is raised stops the run.
        """

    def labels(self) -> np.ndarray | None:
        """(len,) integers, or None if there are none."""


class Origin(NamedTuple):
    """Where records come from: the same place (len,) of the same whole is the same image, by whatever split."""

    whole: str
    places: Sequence[int] | Sequence[str]


class ArraySource:
    """Images that are in memory: N arrays (H, W, C), of one size or of many, (N,) integer labels and (N,) groups."""

    def __init__(self, images: Any, labels: Any = None, name: str = "arrays", *, groups: Any = None) -> None:
        """ConfigError for labels or groups that are not one integer per image."""
        self.images, self.name = images, name
        self.given = None if labels is None else _integers(labels, len(images), name, "labels")
        self.grouped = None if groups is None else _integers(groups, len(images), name, "groups")
        self.classes = None if self.given is None else int(self.given.max(initial=-1)) + 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]

    def labels(self) -> np.ndarray | None:
        return self.given

    def groups(self) -> np.ndarray | None:
        return self.grouped


class Subset:
    """Some records of a source, in the order given."""

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        self.source, self.rows, self.name, self.classes = source, np.asarray(rows), source.name, source.classes
        self.class_names, self.group_names = class_names_of(source), group_names_of(source)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.source[int(self.rows[index])]

    def labels(self) -> np.ndarray | None:
        return labels_of(self.source, self.rows)

    def groups(self) -> np.ndarray | None:
        return _of(groups_of(self.source), self.rows)

    def names(self) -> list[str]:
        names = names_of(self.source)
        return [str(i) if names is None else names[i] for i in self.rows.tolist()]

    def origin(self) -> Origin | None:
        found = origin_of(self.source)
        return None if found is None else Origin(found.whole, [found.places[i] for i in self.rows.tolist()])


def check(source: Any) -> None:
    """Raises ConfigError for an object that is no source, and for one without images."""
    if not isinstance(source, Source):
        raise ConfigError(
            f"a {type(source).__name__} is no source: it needs __len__, __getitem__, labels(), name and classes; "
            "data.sources.ArraySource makes one of arrays"
        )
    if len(source) == 0:
        raise ConfigError(f"{source.name} holds no images")


def read(source: Source, index: int, *, like: np.ndarray | None = None) -> np.ndarray:
    """Image `index`, (H, W, C); ConfigError for other channels or dtype than `like` has, and for values not finite.

    ReadError for what a source cannot give now, and Unreadable for a bad file. Errors name the record.
    """
    try:
        image = source[index]
    except ConfigError:
        raise
    except Exception as error:
        raise ReadError(
            f"{source.name}: {record(source, index)} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if np.ndim(image) != 3 or image.dtype not in STORED:
        raise ConfigError(
            f"{source.name}: {record(source, index)} is {getattr(image, 'dtype', type(image).__name__)} "
            f"{np.shape(image)}; an image is an array (H, W, C) of {', '.join(DTYPES)}"
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ConfigError(f"{source.name}: {record(source, index)} holds values that are not finite")
    return image if like is None else same_kind(image, like, source, index)


def same_kind(image: np.ndarray, like: np.ndarray, source: Source, index: int, first: int = 0) -> np.ndarray:
    """`image`, record `index`; ConfigError for other channels or another dtype than record `first`, `like`, has."""
    if image.shape[2] != like.shape[2]:
        raise ConfigError(
            f"{source.name}: {record(source, index)} has {channels_of(image)} and {record(source, first)} "
            f"{channels_of(like)}; set data.channels=3 (or 1) to convert them"
        )
    if image.dtype != like.dtype:
        raise ConfigError(
            f"{source.name}: {record(source, index)} is {image.dtype} and {record(source, first)} {like.dtype}; store "
            "all alike"
        )
    return image


def first_good(decoded: Callable[[int], np.ndarray], records: int) -> tuple[int, np.ndarray]:
    """The first record that is no bad file, and its image; Unreadable, the first one's, where all are."""
    for index in range(records):
        try:
            return index, decoded(index)
        except Unreadable:
            continue
    return 0, decoded(0)


def record(source: Source, index: int) -> str:
    """What messages call a record: its number, and its name where it has one."""
    names = names_of(source)
    return f"record {index}" if names is None else f"record {index} ({names[index]})"


def names_of(source: Source) -> list[str] | None:
    """The name of every record, such as its file's path; None where a source has no method `names`."""
    names = getattr(source, "names", None)
    return None if names is None else names()


def origin_of(source: Source) -> Origin | None:
    """Where a source's records come from, its names where it has no method `origin`; None where it cannot tell."""
    method = getattr(source, "origin", None)
    if method is not None:
        return method()
    names = names_of(source)
    return None if names is None else Origin("names", names)


def shared(source: Source, other: Source) -> np.ndarray | None:
    """Records (n,) of `source`, rising, that `other` holds too; None where one of them cannot tell."""
    ours, theirs = origin_of(source), origin_of(other)
    if ours is None or theirs is None:
        return None
    held = set(theirs.places) if ours.whole == theirs.whole else set()
    return np.array([i for i, place in enumerate(ours.places) if place in held], np.int64)


def groups_of(source: Source) -> np.ndarray | None:
    """(len,) integers: records with the same one show the same place, patient or clip; None where there are none.

    ConfigError where they are not one integer per image.
    """
    method = getattr(source, "groups", None)
    groups = None if method is None else method()
    return None if groups is None else _integers(groups, len(source), source.name, "groups")


def class_names_of(source: Source) -> list[str] | None:
    """The name of every class, by label; None where a source does not know them."""
    return getattr(source, "class_names", None)


def labels_of(source: Source, rows: np.ndarray) -> np.ndarray | None:
    """The labels (n,) of some records, or None; a source with a method `labels_of(rows)` need not read the others."""
    some = getattr(source, "labels_of", None)
    return _of(source.labels(), rows) if some is None else some(rows.tolist())


def group_names_of(source: Source) -> list[str] | None:
    """The name of every group, by its number; None where a source does not know them."""
    return getattr(source, "group_names", None)


def fingerprint(source: Source, *, pairs: bool) -> str | None:
    """SHA-256 of what decides which record has which number: names and, with `pairs`, groups and labels.

    None where records have no names.
    """
    names = names_of(source)
    if names is None:
        return None
    out = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape"))
    for numbers in (groups_of(source), source.labels()) if pairs else ():
        out.update(b"-" if numbers is None else np.asarray(numbers, np.int64).tobytes())
    return out.hexdigest()


def _of(numbers: Any, rows: np.ndarray) -> np.ndarray | None:
    return None if numbers is None else np.asarray(numbers)[rows]


def _integers(values: Any, records: int, name: str, what: str) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (records,) or found.dtype.kind not in "iu":
        raise ConfigError(f"{name}: {records} images and {what} {found.dtype} {found.shape}; give ints")
    return found


def channels_of(image: np.ndarray) -> str:
    """The channels of an image (H, W, C), for messages."""
    return f"{image.shape[2]} channel{'s' if image.shape[2] > 1 else ''}"
