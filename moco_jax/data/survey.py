"""What images are, from reading every one: kinds, sizes, values, what cannot be read, what is there twice."""

import collections
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moco_jax.config import ConfigError
from moco_jax.data import files, opening, pixels, threads


class Kind(NamedTuple):
    """What training needs to be equal throughout: channels and storage dtype."""

    channels: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' if self.channels > 1 else ''} {self.dtype}"


class Values(NamedTuple):
    """What one image holds: its kind, its extremes, and per channel mean and variance, (C,) each."""

    kind: Kind
    low: float
    high: float
    mean: np.ndarray
    variance: np.ndarray


class Look(NamedTuple):
    """What reading one file showed; a file that cannot be read has a problem and nothing else."""

    name: str
    format: str = ""
    size: tuple[int, int] = (0, 0)  # height, width
    stored: Values | None = None  # None for a palette or YCbCr, whose numbers are no colours
    rgb: Values | None = None  # as data.channels=3 converts it; None where it is not 8-bit
    digest: bytes = b""  # of the pixels: equal pictures in other files or formats are equal
    problem: str = ""
    bad: bool = False  # that problem is the file's own: training shows another image in its place, up to a share


class Survey(NamedTuple):
    """All looks, in the order of the records."""

    looks: list[Look]

    @property
    def good(self) -> list[Look]:
        """Those that can be read."""
        return [look for look in self.looks if not look.problem]

    @property
    def bad(self) -> list[Look]:
        """Bad files: damaged, empty, no image, or gone."""
        return [look for look in self.looks if look.bad]

    @property
    def unfit(self) -> list[Look]:
        """The others that training cannot take, and stops at: what is whole and of no use, or not given by the disk."""
        return [look for look in self.looks if look.problem and not look.bad]

    @property
    def kinds(self) -> "collections.Counter[str]":
        """How many images there are of each kind as stored."""
        return collections.Counter(_stored_as(look) for look in self.good)

    @property
    def duplicates(self) -> list[list[str]]:
        """Names of images with the same pixels, a list for each picture that is there more than once."""
        by_digest: dict[bytes, list[str]] = {}
        for look in self.good:
            by_digest.setdefault(look.digest, []).append(look.name)
        return [names for names in by_digest.values() if len(names) > 1]

    def channels(self) -> int | None:
        """What data.channels has to be: None (as stored) for one kind, 3 for mixed 8-bit images.

        ConfigError where images of several kinds cannot be made one.
        """
        if len(self.kinds) <= 1 and all(look.stored for look in self.good):
            return None
        if all(look.rgb for look in self.good):
            return 3
        found = ", ".join(f"{count} of {kind}" for kind, count in self.kinds.most_common())
        other = next(look for look in self.good if not look.rgb)
        raise ConfigError(
            f"images of several kinds cannot be trained on together ({found}), and {other.name} is not 8-bit gray or "
            "colour, so that data.channels cannot make them alike: store all alike, or put them into folders of their "
            "own"
        )


class Summary(NamedTuple):
    """Values over all images that can be read, each image counting alike, as it does in training."""

    kind: Kind
    low: float
    high: float
    mean: tuple[float, ...]  # per channel, of stored values
    std: tuple[float, ...]


def _stored_as(look: Look) -> str:
    if look.stored:
        return str(look.stored.kind)
    return "palette or YCbCr uint8" if look.format == "TIFF" else "palette uint8"


def survey(
    names: list[str], look: Callable[[int], Look], *, workers: int, seen: Callable[[], object] = lambda: None
) -> Survey:
    """The looks at all records, by `workers` threads; `seen` is called after each."""
    looks = []
    for one in threads.in_order(look, range(len(names)), workers=workers):
        looks.append(one)
        seen()
    return Survey(looks)


def array(path: str) -> tuple[files.Listing, Callable[[int], Look]]:
    """The images of an .npy array as a listing, and how to look at one."""
    source = opening.open_array(path, files.TRAIN)
    names = [f"{Path(path).name}[{i}]" for i in range(len(source))]
    listing = files.Listing(Path(path).parent, names, None, [], None, [], [files.TRAIN] * len(source), 0)

    def look(index: int) -> Look:
        image = source[index]
        return look_at(image, names[index], "npy", stored=image)

    return listing, look


def look_at_file(path: Path, name: str) -> Look:
    """Read one image file, as it is stored and, where it is 8-bit, as RGB."""
    rgb: np.ndarray | None = None
    stored, problem, bad = _read(path, name, None)
    if stored is not None and stored.dtype == np.uint8 and stored.shape[2] == 3:
        rgb = stored
    elif stored is None or stored.dtype == np.uint8:  # what is refused as stored may be a palette or YCbCr
        rgb, other, also = _read(path, name, 3)
        problem, bad = other if also else problem, bad or also
    shown = stored if stored is not None else rgb
    if shown is None:
        return Look(name, problem=problem, bad=bad)
    with path.open("rb") as file:
        kind = pixels.format_of(file.read(16)) or "other"
    return look_at(shown, name, kind, stored=stored, rgb=rgb)


def look_at(
    shown: np.ndarray, name: str, kind: str, *, stored: np.ndarray | None, rgb: np.ndarray | None = None
) -> Look:
    """The look of an image (H, W, C) that has been read."""
    if not np.isfinite(shown).all():
        return Look(name, problem=f"{name} holds values that are not finite")
    digest = hashlib.blake2b(np.ascontiguousarray(shown).tobytes(), digest_size=16)
    digest.update(repr((shown.shape, shown.dtype)).encode())
    values = None if stored is None else values_of(stored)
    as_rgb = values if rgb is stored else None if rgb is None else values_of(rgb)
    return Look(name, kind, (shown.shape[0], shown.shape[1]), values, as_rgb, digest.digest())


def _read(path: Path, name: str, channels: int | None) -> tuple[np.ndarray | None, str, bool]:
    """The image or None, what is wrong, and whether the file is bad."""
    try:
        return pixels.read_file(path, channels=channels, where=name), "", False
    except ConfigError as error:
        return None, str(error), isinstance(error, pixels.Unreadable)
    except OSError as error:
        return None, f"{name} was not read: {error.strerror or error}", False


def summary(found: Survey, channels: int | None) -> Summary:
    """Extremes, mean and standard deviation over all images that can be read, converted as data.channels says."""
    values = [look.stored if channels is None else look.rgb for look in found.good]
    each = [v for v in values if v is not None]
    means = np.stack([v.mean for v in each])  # (images, C)
    mean = means.mean(0)
    variance = (np.stack([v.variance for v in each]) + (means - mean) ** 2).mean(0)
    return Summary(
        each[0].kind,
        min(v.low for v in each),
        max(v.high for v in each),
        tuple(mean.tolist()),
        tuple(np.sqrt(variance).tolist()),
    )


def values_of(image: np.ndarray) -> Values:
    """Kind, extremes, and mean and variance per channel, of one image (H, W, C)."""
    wide = image.reshape(-1, image.shape[2]).astype(np.float64)
    return Values(
        Kind(image.shape[2], str(image.dtype)), float(image.min()), float(image.max()), wide.mean(0), wide.var(0)
    )


def sizes(found: Survey) -> Iterator[tuple[str, int]]:
    """The commonest sizes as "HxW" and how many images have them, most first."""
    counts = collections.Counter(look.size for look in found.good)
    for (height, width), count in counts.most_common():
        yield f"{height}x{width}", count
