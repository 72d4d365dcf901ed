"""What lies in a folder of images or a CSV manifest, without opening an image: paths, labels, groups, splits."""

import contextlib
import csv
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moco_jax.config import ConfigError
from moco_jax.data import tree

TRAIN = "train"
HELD_OUT = ("val", "valid", "validation", "test")  # beside a folder `train`, these make the folders splits
COLUMNS = ("path", "label", "group", "split")
LOOK_AT_ALL = 100  # files of one folder from which on it is listed, rather than each looked for


class Listing(NamedTuple):
    """Records in the order of their paths: folder by folder, and within a folder frame2 before frame10."""

    root: Path  # what `paths` are relative to
    paths: list[str]  # with forward slashes; absolute where a manifest says so
    labels: np.ndarray | None  # (N,) int64 places in class_names, -1 in a split without labels; None: no labels at all
    class_names: list[str]
    groups: np.ndarray | None  # (N,) int64 places in group_names, -1 in a split without groups; None: no groups at all
    group_names: list[str]
    splits: list[str]  # (N,) the split of each record
    left_out: int  # files that are hidden or no images by their suffix


def list_folder(folder: str | os.PathLike[str]) -> Listing:
    """The images of a folder.

    Where it holds `train` beside `val`, `valid`, `validation` or `test` (or `train` alone), its folders are splits;
    else it is the split `train`. Folders in a split are classes, numbered by the sorted names in the training split
    (by value where all are whole numbers; otherwise as torchvision's ImageFolder does); the folder that holds an
    image is its group (the same, or one further down). Images that lie in a split itself have neither label nor
    group. Hidden files and files without a suffix of images are left out and counted. Raises ConfigError for no
    folder, no images, images beside folders of images, and a class that the training split lacks.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ConfigError(f"{folder} is {'a file, and no folder' if root.exists() else 'not there'}")
    read = tree.read(root)
    left_out = sum(folder.left_out for folder in read.values())
    found = {place: read[place].names for place in sorted(read) if read[place].names}
    if not found:
        skipped = f" ({left_out} other files)" if left_out else ""
        raise ConfigError(f"{folder} holds no images{skipped}; images end in {', '.join(tree.SUFFIXES)}")
    tops = {place.split("/", 1)[0] for place in found if place}
    split_folders = TRAIN in tops and (not tops.isdisjoint(HELD_OUT) or tops == {TRAIN})
    if split_folders and "" in found:
        raise _beside(str(folder), found[""])
    parts = [place.partition("/")[::2] if split_folders else (TRAIN, place) for place in found]
    for split, inner in parts:
        if not inner and sum(other == split for other, _ in parts) > 1:
            above = (os.path.join(folder, split), f"{split}/") if split_folders else (str(folder), "")
            raise _beside(above[0], [above[1] + name for name in found[split if split_folders else ""]])
    return _listing(
        root,
        str(folder),
        [f"{place}/{name}" if place else name for place, names in found.items() for name in names],
        [inner.split("/", 1)[0] for _, inner in parts],
        [inner for _, inner in parts],
        [split for split, _ in parts],
        left_out,
        times=[len(names) for names in found.values()],
    )


def list_manifest(manifest: str | os.PathLike[str]) -> Listing:
    """The images that a CSV file names: a column `path` (relative to the file's folder, or absolute), and perhaps
    `label`, `group` and `split`; other columns are left alone.

    Records come in the order of their paths, whatever the order of the rows. Labels that are all whole numbers are
    numbered by value. Raises ConfigError for no file, no such columns, no or repeated rows, missing files (counted,
    three named), a column filled in a part of a split only, and a class that the training split lacks.
    """
    file = Path(manifest).expanduser()
    rows = _rows(file, str(manifest))
    for row in rows:
        row["path"] = os.path.normpath(row["path"])
    rows.sort(key=lambda row: _place(row["path"]))
    paths = [row["path"] for row in rows]
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise ConfigError(f"{manifest} names {len(repeated)} files more than once: {_some(repeated)}")
    missing = _missing(str(file.parent), paths)
    if missing:
        raise ConfigError(
            f"{manifest} names {len(missing)} files of {len(paths)} that are not there: {_some(missing)}; paths are "
            f"relative to {file.parent}"
        )
    splits = [row.get("split", TRAIN) for row in rows]
    if not all(splits):
        raise ConfigError(
            f"{manifest}: split is empty in {splits.count('')} of {len(rows)} rows; fill all, or leave the column out"
        )
    labels, groups = (_filled(rows, name, splits, str(manifest)) for name in ("label", "group"))
    return _listing(file.parent, str(manifest), paths, labels, groups, splits, 0)


def _filled(rows: Sequence[dict[str, str]], name: str, splits: Sequence[str], manifest: str) -> list[str]:
    """A column of a manifest; ConfigError where a part of a split has it, and a part not."""
    values = [row.get(name, "") for row in rows]
    for split in dict.fromkeys(splits):
        empty = [not v for v, s in zip(values, splits, strict=True) if s == split]
        if any(empty) and not all(empty):
            raise ConfigError(
                f"{manifest}: {name} is empty in {sum(empty)} of the {len(empty)} rows of split {split!r}; "
                "fill all, or none"
            )
    return values


def _missing(root: str, paths: Sequence[str]) -> list[str]:
    """Those of `paths`, which stand folder by folder, that are no files: many of one folder by one look at it."""
    missing = []
    for folder, group in itertools.groupby(paths, os.path.dirname):
        where, asked = os.path.join(root, folder), list(group)
        if len(asked) >= LOOK_AT_ALL:
            with contextlib.suppress(OSError), os.scandir(where) as entries:  # what is not listed may still be there
                there = {entry.name for entry in entries if entry.is_file()}
                asked = [path for path in asked if path.rpartition("/")[2] not in there]
        missing += [path for path in asked if not os.path.isfile(os.path.join(root, path))]
    return missing


def _place(path: str) -> tuple[str, tuple[list[str | int], str]]:
    folder, _, name = path.rpartition("/")
    return folder, tree.natural(name)


def _rows(file: Path, name: str) -> list[dict[str, str]]:
    """The rows of a manifest, cells without blanks around them."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:  # Excel begins with a byte order mark
            reader = csv.reader(text)
            columns = [c.strip() for c in next(reader, [])]
            places = {column: i for i, column in enumerate(columns) if column in COLUMNS}
            rows = [{c: row[i].strip() if i < len(row) else "" for c, i in places.items()} for row in reader if row]
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{name} is no CSV text in UTF-8: {error}") from error
    if "path" not in columns:
        raise ConfigError(
            f"{name} has no column 'path' in its first line ({', '.join(columns) or 'empty'}); its columns are path "
            "and perhaps label, group, split"
        )
    if not rows:
        raise ConfigError(f"{name} names no images: it has a header and no rows")
    nameless = sum(not row["path"] for row in rows)
    if nameless:
        raise ConfigError(f"{name}: path is empty in {nameless} of {len(rows)} rows")
    return rows


def _listing(
    root: Path,
    name: str,
    paths: list[str],
    labels: Sequence[str],
    groups: Sequence[str],
    splits: list[str],
    left_out: int,
    times: Sequence[int] | int = 1,
) -> Listing:
    """Names as numbers; "" is no label and no group. Label, group and split stand for as many `times` paths."""
    train = {label for label, split in zip(labels, splits, strict=True) if split == TRAIN and label}
    class_names = _sorted(train or {label for label in labels if label})
    known = {"", *class_names}
    strange = {(s, c) for c, s in zip(labels, splits, strict=True) if c not in known}
    if strange:
        split, label = min(strange)
        raise ConfigError(
            f"{name}: class {label!r} of {split} is not among the {len(class_names)} classes of {TRAIN} "
            f"({_some(class_names)}){f', and {len(strange) - 1} more are not' if len(strange) > 1 else ''}"
        )
    group_names = sorted({g for g in groups if g})
    numbers = (_numbers(labels, class_names, times), class_names, _numbers(groups, group_names, times), group_names)
    each = splits if isinstance(times, int) else [s for s, n in zip(splits, times, strict=True) for _ in range(n)]
    return Listing(root, paths, *numbers, each, left_out)


def _sorted(names: Iterable[str]) -> list[str]:
    """By value where all are whole numbers, so that a manifest's labels 0 to 10 keep their numbers; else as text."""
    names = list(names)
    return sorted(names, key=lambda n: (int(n), n)) if all(re.fullmatch(r"[0-9]+", n) for n in names) else sorted(names)


def _numbers(values: Sequence[str], names: list[str], times: Sequence[int] | int) -> np.ndarray | None:
    place = {name: i for i, name in enumerate(names)}
    return np.repeat(np.array([place.get(v, -1) for v in values], np.int64), times) if names else None


def _beside(folder: str, names: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{folder} holds images beside its folders of images ({len(names)}, such as {names[0]}): move them into a "
        "folder, or list the images in a manifest"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
