"""Bad files in training: a record that cannot be read shows the image of another, the same on every run and host.

A record keeps its number whatever it shows: order, queue and bank are computed from numbers on every host, and no host
decodes the images of another. So hosts need not agree on anything: whoever reads a record finds the same stand-in.
"""

import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from moco_jax.config import ConfigError
from moco_jax.data import order, sources
from moco_jax.data.pixels import Unreadable

NAMED = 10  # bad files in an error; the log names all


class Bad(NamedTuple):
    """A record that cannot be read."""

    record: int
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


class Replacing:
    """A source in which the next good one of `order.stand_ins` is shown for each bad file; labels and names stay.

    So labels may belong to another image than is shown: an evaluation reads the source itself, or asks `good`.
    """

    def __init__(self, source: sources.Source, limit: float, groups: np.ndarray | None = None) -> None:
        """`limit`: the share of bad files above which the run stops; groups (len,) of a pair rule, or None.

        Raises ConfigError for an object that is no source, or has no images.
        """
        sources.check(source)
        self.source, self.limit, self.name, self.classes = source, limit, source.name, source.classes
        self.class_names, self.group_names = sources.class_names_of(source), sources.group_names_of(source)
        self._groups = groups
        self._bad: dict[int, Bad] = {}  # in the order in which they were found
        self._told = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> np.ndarray:
        """Image `index`, or its stand-in; ConfigError, which names bad files, where there are more than `limit`."""
        if index not in self._bad:
            try:
                return self.source[index]
            except Unreadable as error:
                self._note(index, error)
        for record in order.stand_ins(index, len(self), self._groups):
            self._check()
            if record in self._bad:
                continue
            try:
                return sources.read(self.source, record)  # whose errors name it, and not the record it stands for
            except Unreadable as error:
                self._note(record, error)
        raise ConfigError(f"none of the {len(self):,} images of {self.name} can be read: {_some(self.bad)}")

    def labels(self) -> np.ndarray | None:
        return self.source.labels()

    def labels_of(self, rows: list[int]) -> np.ndarray | None:
        return sources.labels_of(self.source, np.asarray(rows))

    def groups(self) -> np.ndarray | None:
        return sources.groups_of(self.source)

    def names(self) -> Any:
        return sources.names_of(self.source)

    def origin(self) -> sources.Origin | None:
        return sources.origin_of(self.source)

    @property
    def bad(self) -> list[Bad]:
        """The bad files found so far, by this process."""
        with self._lock:
            return list(self._bad.values())

    @property
    def good(self) -> np.ndarray:
        """Records (n,), rising, that are not known to be bad; all of them are good after each was read."""
        return np.setdiff1d(np.arange(len(self)), [one.record for one in self.bad])

    def news(self) -> list[Bad]:
        """The bad files found since the last call: each is returned once."""
        with self._lock:
            new = list(self._bad.values())[self._told :]
            self._told = len(self._bad)
        return new

    def said(self, files: list[Bad], which: str) -> str:
        """One line on how many there are of how many images, and these by name."""
        return (
            f"bad files: {len(self.bad):,} of {len(self):,} images cannot be read, and others are shown in their place"
            f"; {which}: {', '.join(map(str, files))}"
        )

    def _note(self, record: int, error: Unreadable) -> None:
        names = sources.names_of(self.source)
        with self._lock:  # another thread may have found it meanwhile
            self._bad.setdefault(record, Bad(record, f"record {record}" if names is None else names[record], error.why))
        self._check()

    def _check(self) -> None:
        count, records = len(self._bad), len(self)
        if count / records > self.limit:  # a quotient is rounded as the number that somebody wrote was
            raise ConfigError(
                f"{count:,} of the {records:,} images of {self.name} cannot be read, more than data.max_bad_fraction "
                f"{self.limit:g} allows: {_some(self.bad)}; bring them back, raise that share, or leave them out (of "
                "files, moco-jax inspect PATH --write=PAGE.py finds all and writes a page without them)"
            )


def _some(bad: list[Bad]) -> str:
    more = f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
    return ", ".join(map(str, bad[:NAMED])) + more


def readable(source: sources.Source, chosen: Iterable[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Those of some records (n,) that can be read, and their own images; ConfigError where none can, or kinds differ.

    For pictures, where one that is missing matters less than one with another's label.
    """
    own = source.source if isinstance(source, Replacing) else source
    found: list[int] = []
    images: list[np.ndarray] = []
    for index in chosen:
        try:
            images.append(sources.read(own, index, like=images[0] if images else None))
        except Unreadable:
            continue
        found.append(index)
    if not found:
        raise ConfigError(f"{source.name}: none of the images looked at can be read")
    return np.array(found, np.int64), images
