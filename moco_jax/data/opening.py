"""The one way from what a config or a flag names to a source: a TFDS data set, a folder, a manifest or an array."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tensorflow_datasets

from moco_jax.config import ConfigError, Data
from moco_jax.data import files, pixels, prepare, sources, tfds
from moco_jax.data.file_sources import ArrayFile, FileSource

KINDS = ("dataset", "folder", "manifest", "array")  # keys of config.Data that say where images are


def open_split(
    data: Data,
    split: str,
    *,
    name: str | None = None,
    data_dir: str | None = None,
    features: tuple[str | None, str | None] = (None, None),
) -> sources.Source:
    """`split`, in TFDS's split language, of the data that `name` says, or of a run's own `data` where that is None.

    `name` is a path to a folder, a .csv or an .npy file, or else a TFDS data set in `data_dir` (None: data.data_dir).
    `features` of image and label of such a one: None are those of `data` in its own data set, else "image" and "label".
    Images are converted as `data.channels` says. Splits of files are those of `files`, an array is the split `train`; a
    slice of files, such as train[:90%], takes them in an order that is random but for ever the same (`chosen`).
    Raises ConfigError for what is not there, holds no such split, or is named twice.
    """
    kind, where = _origin(data) if name is None else _kind(name, data_dir or data.data_dir)
    if kind != "array":
        pixels.check_channels(data.channels)
    if kind == "dataset":
        same = data.dataset is not None and _base(data.dataset) == _base(where)
        own = (data.image_feature, data.label_feature) if same else (tfds.IMAGE, tfds.LABEL)
        image, label = (asked or known for asked, known in zip(features, own, strict=True))
        folder = data_dir or data.data_dir
        return tfds.open_source(where, split, data_dir=folder, channels=data.channels, image=image, label=label)
    if kind == "array":
        return open_array(where, split)
    listing = files.list_folder(where) if kind == "folder" else files.list_manifest(where)
    return of_listing(listing, split, name=where, channels=data.channels, groups_matter=data.pairs == "same_group")


def names_images(data: Data) -> bool:
    """Whether a config says where its images are."""
    return any(getattr(data, kind) is not None for kind in KINDS)


def own_split(data: Data, *, name: str | None = None, data_dir: str | None = None) -> sources.Source | None:
    """The images that a run trained on, `data.split`, to be compared with those of `name` (as in `open_split`).

    None where `name` cannot hold any of them. Raises ConfigError or OSError where they are not there any more, so that
    nobody takes that for none in common.
    """
    if name is not None and not _may_share(data, name, data_dir):
        return None
    return open_split(data, data.split)


def folder_of(name: str, data_dir: str | None) -> Path | None:
    """The folder whose images a text names, as `open_split` takes it; None where it names no folder that is there."""
    path = Path(name).expanduser()
    return path.resolve() if path.is_dir() and _kind(name, data_dir)[0] == "folder" else None


def of_listing(
    listing: files.Listing, split: str, *, name: str, channels: int | None = None, groups_matter: bool = False
) -> FileSource:
    """A split of a listing as a source; labels, groups and names of classes where the split has them."""
    places = chosen(listing, split, name=name, groups_matter=groups_matter)
    label, group = (_part(numbers, places) for numbers in (listing.labels, listing.groups))
    return FileSource(
        f"{name} ({split})",
        listing.root,
        [listing.paths[i] for i in places.tolist()],
        label,
        group,
        None if label is None else listing.class_names,
        None if group is None else listing.group_names,
        channels,
    )


def open_array(path: str, split: str) -> ArrayFile:
    """An .npy file of images (N, H, W, C) or (N, H, W), mapped into memory; slices of `train` are in its order."""
    try:
        images = np.load(os.path.expanduser(path), mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        said = str(error).splitlines()[0]
        reason = "" if "allow_pickle" in said else f" ({said})"  # what numpy advises for any other file, and is unsafe
        raise ConfigError(f"{path} is no whole .npy file of numbers{reason}") from error
    if not isinstance(images, np.ndarray) or images.ndim not in (3, 4) or images.dtype not in pixels.STORED:
        held = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else "several arrays"
        raise ConfigError(
            f"{path} holds {held}; images are (N, H, W, C) or (N, H, W) of {', '.join(pixels.DTYPES)}, in native byte "
            "order: convert them once, as you mean it, and store that"
        )
    images = images[..., None] if images.ndim == 3 else images
    ranges = _ranges(split, {files.TRAIN: len(images)}, path)
    places = np.unique(np.concatenate([np.arange(*ends) for _, *ends in ranges]))
    return ArrayFile(f"{path} ({split})", images, places, path)


def chosen(listing: files.Listing, split: str, *, name: str, groups_matter: bool = False) -> np.ndarray:
    """Places (n,) of a split's records in a listing, rising; a record that is named twice counts once.

    A slice goes through a split in the order of a hash of the relative paths, so that it is a random part of every
    class and stays as it is when the folder moves. Where groups are more than the classes, or matter to the caller, the
    order is of the groups' names: a group stays whole, but for the one at the border.
    """
    ranges = _ranges(split, Counter(listing.splits), name)
    by_group = listing.groups is not None and (
        groups_matter or set(listing.group_names) != set(listing.class_names)
    )  # folders of classes are groups too, and a slice of whole classes would be of little use

    taken = np.zeros(len(listing.paths), bool)
    for part, start, end in ranges:
        places = np.array([i for i, s in enumerate(listing.splits) if s == part], np.int64)
        whole = (start, end) == (0, len(places))
        taken[places if whole else _mixed(listing, places, by_group=by_group)[start:end]] = True
    return np.flatnonzero(taken)


def _mixed(listing: files.Listing, places: np.ndarray, *, by_group: bool) -> np.ndarray:
    """`places` (n,), which rise, in the order of the digests of their paths, or of their groups' names."""

    if by_group and listing.groups is not None:
        names = [_digest(name) for name in listing.group_names]
        groups = zip(places.tolist(), listing.groups[places].tolist(), strict=True)
        digests = [_digest(listing.paths[i]) if group < 0 else names[group] for i, group in groups]
    else:
        digests = [_digest(listing.paths[i]) for i in places.tolist()]
    words = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)
    return places[np.lexsort((words[:, 1], words[:, 0]))]  # which is stable: among equals the first stays first


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _ranges(split: str, counts: Mapping[str, int], name: str) -> list[tuple[str, int, int]]:
    """(split, start, end) of a text in TFDS's split language; ConfigError, listing the splits, where it is empty."""
    listed = ", ".join(f"{part} ({count} images)" for part, count in counts.items())
    try:
        read = tensorflow_datasets.core.ReadInstruction.from_spec(split)
        infos = {part: SimpleNamespace(num_examples=count) for part, count in counts.items()}
        found = [
            (i.splitname, i.from_ or 0, counts[i.splitname] if i.to is None else i.to) for i in read.to_absolute(infos)
        ]
    except (ValueError, AssertionError) as error:
        raise ConfigError(
            f"split {split!r} of {name} holds no images ({str(error).splitlines()[0]}); its splits: {listed}"
        ) from error
    if not any(end > start for _, start, end in found):
        raise ConfigError(f"split {split!r} of {name} holds no images; its splits: {listed}")
    return found


def _part(numbers: np.ndarray | None, places: np.ndarray) -> np.ndarray | None:
    """Numbers of some records; None where one of them has none."""
    part = None if numbers is None else numbers[places]
    return None if part is None or (part < 0).any() else part


def _origin(data: Data) -> tuple[str, str]:
    """Which of the four keys is set, and to what; ConfigError for none, for several, and for what is not there."""
    kind, value = _named(data)
    if kind != "dataset" and not os.path.exists(os.path.expanduser(value)):
        raise ConfigError(f"data.{kind}={value!r} is not there (from {os.getcwd()})")
    return kind, value


def _named(data: Data) -> tuple[str, str]:
    """The same, whether or not it is there."""
    given = {kind: value for kind in KINDS if (value := getattr(data, kind)) is not None}
    if len(given) == 1:
        return next(iter(given.items()))
    if not given:
        raise ConfigError(f"no images are named: set one of {', '.join(f'data.{kind}' for kind in KINDS)}")
    named = " and ".join(f"data.{kind}={value!r}" for kind, value in given.items())
    rest = " ".join(f"--config.data.{kind}=None" for kind in list(given)[:-1])
    raise ConfigError(f"{named}: images come from one of them; set {rest}")


def _may_share(data: Data, name: str, data_dir: str | None) -> bool:
    """Whether what a text names is of the data set, or like the run's own `data` in files."""
    (kind, own), (other_kind, other) = _named(data), _kind(name, data_dir or data.data_dir)
    if "dataset" not in (kind, other_kind):
        return True
    bases = {_base(text) for text in (own, other)}
    folders = {os.path.realpath(prepare.folder_of(folder)) for folder in (data.data_dir, data_dir or data.data_dir)}
    return len(bases) == len(folders) == 1


def _base(dataset: str) -> str:
    """A TFDS name without config and version."""
    return re.split("[/:]", dataset)[0]


def _kind(name: str, data_dir: str | None) -> tuple[str, str]:
    """What a text names. A bare name that is both a data set and a folder here is the data set: write ./NAME."""
    path = os.path.expanduser(name)
    for suffix, kind in ((".csv", "manifest"), (".npy", "array")):
        if path.lower().endswith(suffix):
            return kind, name
    bare, is_folder = re.fullmatch(r"[^./~][^/]*", name) is not None, os.path.isdir(path)
    if is_folder and not bare:
        return "folder", name
    known = tfds.is_known(name, prepare.folder_of(data_dir))
    if is_folder and not known:
        return "folder", name
    if os.path.exists(path) and not is_folder:
        raise ConfigError(f"{name!r} is a file; a folder, a .csv or an .npy file is needed")
    if not bare and not known:
        raise ConfigError(
            f"{name!r} is not there: no such folder, and no such data set in {prepare.folder_of(data_dir)}"
        )
    return "dataset", name
