"""Sources of images in files: one in each, or all in one array."""

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np

from moco_jax.data import pixels, sources


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Images in files, decoded one by one: a split of a folder or of a manifest."""

    name: str
    root: Path
    paths: list[str]  # below root
    label: np.ndarray | None  # (N,) int64
    group: np.ndarray | None  # (N,) int64
    class_names: list[str] | None
    group_names: list[str] | None
    channels: int | None

    @property
    def classes(self) -> int | None:
        """How many there are in the training split, whether or not this split holds all."""
        return None if self.class_names is None else len(self.class_names)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, C); ConfigError, which names the file, for one unlike the first good one; Unreadable for a bad one."""
        if not 0 <= index < len(self.paths):
            raise IndexError(f"{self.name}: record {index} of {len(self.paths)}")
        image, (first, like) = self._decoded(index), self._first
        return sources.same_kind(image, like, self, index, first)

    def labels(self) -> np.ndarray | None:
        return self.label

    def names(self) -> list[str]:
        return self.paths

    def groups(self) -> np.ndarray | None:
        return self.group

    def origin(self) -> sources.Origin:
        """Paths from the root of the file system, so that a manifest of a folder's images names the same ones."""
        real = functools.cache(lambda folder: os.path.join(os.path.realpath(os.path.join(self.root, folder)), ""))
        ends = [path.rfind("/") + 1 for path in self.paths]  # one look for each folder, as there are fewer
        return sources.Origin("files", [real(p[:end]) + p[end:] for p, end in zip(self.paths, ends, strict=True)])

    @functools.cached_property
    def _first(self) -> tuple[int, np.ndarray]:
        return sources.first_good(self._decoded, len(self))

    def _decoded(self, index: int) -> np.ndarray:
        where = f"{self.name}: {self.paths[index]}"
        try:
            return pixels.read_file(os.path.join(self.root, self.paths[index]), channels=self.channels, where=where)
        except pixels.Unreadable as error:
            hint = "moco-jax inspect PATH --write=PAGE.py finds all such files and writes a page without them"
            raise pixels.Unreadable(f"{error}; {hint}", error.why) from error


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """Images in one memory-mapped .npy file, without labels."""

    name: str
    images: np.ndarray  # (M, H, W, C), mapped
    places: np.ndarray  # (N,) which of them
    path: str = ""

    @property
    def classes(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self.places):
            raise IndexError(f"{self.name}: record {index} of {len(self.places)}")
        return np.array(self.images[self.places[index]])

    def labels(self) -> None:
        return None

    def origin(self) -> sources.Origin:
        return sources.Origin(os.path.realpath(os.path.expanduser(self.path)), self.places.tolist())
