"""What a source of images is, how one is read, and what a run has to know of it."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from moco_jax import config
from moco_jax.config import ConfigError
from moco_jax.data.pixels import DTYPES

INSIDE = 0.01  # share of the values off the ends of data.range that must lie within it: fewer are a mistake
SAMPLE = 64  # images that `facts` looks at


class ReadError(RuntimeError):
    """A source failed to give one of its images; the message names the record."""


@runtime_checkable
class Source(Protocol):
    """Images by number: what `opening.open_split` returns, and all that a user's own object has to offer.

    It may also have `names() -> list of str`, `groups() -> (len,) integers`, `origin() -> Origin or None`, and
    `class_names` and `group_names`, lists of str or None.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> int | None: ...  # how many, where labels are classes

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """Image `index`, (H, W, C), in its storage dtype: uint8, uint16 or float32. Called from several threads."""

    def labels(self) -> np.ndarray | None:
        """(len,) integers, or None if there are none."""


class Origin(NamedTuple):
    """Where records come from: the same place (len,) of the same whole is the same image, by whatever split."""

    whole: str
    places: Sequence[int] | Sequence[str]


class Facts(NamedTuple):
    """What the images are, by those looked at.

    `shape` is (H, W), None if sizes differ; `low` and `high` are the values mapped to 0..1; `sides` the shorter side of
    each image that was looked at.
    """

    records: int
    channels: int
    dtype: np.dtype
    shape: tuple[int, int] | None
    low: float
    high: float
    sides: tuple[int, ...]


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
        return _of(self.source.labels(), self.rows)

    def groups(self) -> np.ndarray | None:
        return _of(groups_of(self.source), self.rows)

    def names(self) -> list[str]:
        names = names_of(self.source)
        return [str(i) if names is None else names[i] for i in self.rows.tolist()]

    def origin(self) -> Origin | None:
        found = origin_of(self.source)
        return None if found is None else Origin(found.whole, [found.places[i] for i in self.rows.tolist()])


def read(source: Source, index: int, *, like: np.ndarray | None = None) -> np.ndarray:
    """Image `index`, (H, W, C); ConfigError for other channels or dtype than `like` has. Errors name the record."""
    try:
        image = source[index]
    except ConfigError:
        raise
    except Exception as error:
        raise ReadError(
            f"{source.name}: {record(source, index)} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if np.ndim(image) != 3 or str(image.dtype) not in DTYPES:
        raise ConfigError(
            f"{source.name}: {record(source, index)} is {getattr(image, 'dtype', type(image).__name__)} "
            f"{np.shape(image)}; an image is an array (H, W, C) of {', '.join(DTYPES)}"
        )
    return image if like is None else same_kind(image, like, source, index)


def same_kind(image: np.ndarray, like: np.ndarray, source: Source, index: int) -> np.ndarray:
    """`image`, which is record `index`; ConfigError for other channels or another dtype than record 0, `like`, has."""
    if image.shape[2] != like.shape[2]:
        raise ConfigError(
            f"{source.name}: {record(source, index)} has {_channels(image)} and {record(source, 0)} {_channels(like)};"
            " set data.channels=3 (or 1) to convert them"
        )
    if image.dtype != like.dtype:
        raise ConfigError(
            f"{source.name}: {record(source, index)} is {image.dtype} and {record(source, 0)} {like.dtype}; store all "
            "alike"
        )
    return image


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


def facts(source: Source, data: config.Data) -> Facts:
    """What the run has to know of the images, from up to 64 of them spread over the source.

    Raises ConfigError for an object that is no source, an empty one, mixed channels or dtypes, mean or std not of one
    value per channel, 16-bit or float images without `data.range` (naming the range measured), and a `data.range` that
    nearly every value lies outside of, whatever lies on its ends.
    """
    if not isinstance(source, Source):
        raise ConfigError(
            f"a {type(source).__name__} is no source: it needs __len__, __getitem__, labels(), name and classes; "
            "data.sources.ArraySource makes one of arrays"
        )
    if len(source) == 0:
        raise ConfigError(f"{source.name} holds no images")
    chosen = np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int)).tolist()
    first = read(source, 0)
    sample = [read(source, i, like=first) for i in chosen]
    strange = next((i for i, image in zip(chosen, sample, strict=True) if not np.isfinite(image).all()), None)
    if strange is not None:
        raise ConfigError(f"{source.name}: {record(source, strange)} holds values that are not finite")
    sizes = {image.shape[:2] for image in sample}
    channels = first.shape[2]
    if data.channels not in (None, channels):
        raise ConfigError(
            f"data.channels is {data.channels} and images of {source.name} have {_channels(first)};"
            " a source of your own is not converted, leave data.channels out"
        )
    _check_normalisation(data, channels)
    low, high = _range(data, sample)
    shape = sizes.pop() if len(sizes) == 1 else None
    return Facts(len(source), channels, first.dtype, shape, low, high, tuple(min(i.shape[:2]) for i in sample))


def enlarged(facts: Facts, size: int) -> list[str]:
    """A warning where images are smaller than a view of `size` pixels."""
    small = [side for side in facts.sides if side < size]
    if not small:
        return []
    return [
        f"{len(small)} of the {len(facts.sides)} images looked at are smaller than views.size {size} (the smallest has "
        f"a side of {min(small)} pixels) and are enlarged, which adds no detail: use a smaller views.size, or leave "
        "them out"
    ]


def _of(numbers: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if numbers is None else numbers[rows]


def _integers(values: Any, records: int, name: str, what: str) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (records,) or found.dtype.kind not in "iu":
        raise ConfigError(f"{name}: {records} images and {what} {found.dtype} {found.shape}; give ints")
    return found


def _check_normalisation(data: config.Data, channels: int) -> None:
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != channels:
            raise ConfigError(f"data.{name} has length {len(values)} and images have {channels} channels; one for each")
    if not min(data.std) > 0:
        raise ConfigError(f"data.std must be above 0, not {data.std}")


def _range(data: config.Data, sample: list[np.ndarray]) -> tuple[float, float]:
    if data.range is None and sample[0].dtype == np.uint8:
        return 0.0, 255.0
    low, high = min(image.min() for image in sample), max(image.max() for image in sample)
    measured = f"{len(sample)} images measured hold {low} to {high}"
    if data.range is None:
        raise ConfigError(
            f"{sample[0].dtype} images need data.range=(low, high), the values mapped to 0 and 1; {measured}"
        )
    if not data.range[0] < data.range[1]:
        raise ConfigError(f"data.range must rise, not {data.range}")
    # A value on an end of the range, as a background of zeros is on that of (0, 255), does not show that it fits.
    inside = np.mean([((image > data.range[0]) & (image < data.range[1])).mean() for image in sample])
    outside = np.mean([((image < data.range[0]) | (image > data.range[1])).mean() for image in sample])
    if inside < INSIDE * (inside + outside) or high <= data.range[0] or low >= data.range[1]:
        raise ConfigError(
            f"data.range {data.range} leaves everything outside but {inside:.1%} of the values: {measured}; give their "
            "span"
        )
    return data.range


def _channels(image: np.ndarray) -> str:
    return f"{image.shape[2]} channel{'s' if image.shape[2] > 1 else ''}"
