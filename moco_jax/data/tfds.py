"""TFDS data sets prepared as array_record, read without TensorFlow."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from moco_jax import config
from moco_jax.config import ConfigError
from moco_jax.data import digits, pixels, sources

CHUNK = 1024  # records read at once for their labels
PREPARE = "moco-jax prepare dataset {} --data_dir={}"


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split of a TFDS data set, decoded by Pillow alone (TFDS would take OpenCV where it is installed)."""

    name: str
    classes: int | None
    records: Sequence[bytes]
    features: Any  # tfds.features.FeaturesDict
    channels: int | None
    class_names: list[str] | None = None
    whole: str = ""  # the folder of the data set
    places: tuple[range, ...] = ()  # as `_places`

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, C); ConfigError for an image unlike the first that can be read, or one that Pillow would not read
        without loss; Unreadable for bytes that are none."""
        if not 0 <= index < len(self.records):
            raise IndexError(f"{self.name}: record {index} of {len(self.records)}")
        image, (first, like) = self._decoded(index), self._first
        return sources.same_kind(image, like, self, index, first)

    def labels(self) -> np.ndarray | None:
        """(len,) int64, without decoding an image; None where the data set has no integer feature "label"."""
        label = _feature(self.features, "label")
        if label is None or label.shape != () or not np.issubdtype(label.np_dtype, np.integer):
            return None
        parse = tfds.features.FeaturesDict({"label": label}).deserialize_example_np
        found = np.empty(len(self), np.int64)
        for start in range(0, len(self), CHUNK):
            keys = list(range(start, min(start + CHUNK, len(self))))
            records = self.records.__getitems__(keys)  # type: ignore[attr-defined]
            found[start : start + CHUNK] = [parse(record)["label"] for record in records]
        return found

    def origin(self) -> sources.Origin | None:
        return sources.Origin(self.whole, [*itertools.chain(*self.places)]) if self.places else None

    @functools.cached_property
    def _first(self) -> tuple[int, np.ndarray]:
        return sources.first_good(self._decoded, len(self))

    @functools.cached_property
    def _image(self) -> Any:
        return tfds.features.FeaturesDict({"image": self.features["image"]})

    def _decoded(self, index: int) -> np.ndarray:
        record, where = self.records[index], f"{self.name}: record {index}"  # what is raised here, the disk says
        feature = self._image["image"]
        encodes = isinstance(feature, tfds.features.Image)  # else a tensor, stored as numbers
        try:
            skip = {"image": tfds.decode.SkipDecoding()} if encodes else None
            stored = self._image.deserialize_example_np(record, decoders=skip)["image"]
        except Exception as error:  # protobuf, or what is missing in it
            why = f"is no example of the data set ({type(error).__name__})"
            raise pixels.Unreadable(f"{where} {why}", why) from error
        if not encodes:
            return stored
        found = pixels.decode(stored, where, channels=self.channels)
        return found.view(np.float32) if feature.np_dtype == np.float32 else found  # stored as RGBA, a byte each


def open_source(dataset: str, split: str, *, data_dir: str | None = None, channels: int | None = None) -> TfdsSource:
    """Open `split` of a data set that TFDS has prepared as array_record in `data_dir` (None: TFDS's own default).

    "digits" is prepared on first use. `channels` 1 or 3 converts 8-bit images as Pillow does. Raises ConfigError for a
    data set or split that is not there, another file format, no images, and a conversion that is not one of these.
    """
    folder = data_folder(data_dir)
    if dataset == "digits":
        digits.prepare(folder)
    builder = _builder(dataset, folder)
    features = builder.info.features
    image = _feature(features, "image")
    if image is None or len(image.shape) != 3:
        raise ConfigError(
            f"data set {dataset!r} has no feature 'image' of shape (H, W, C), only {', '.join(features.keys())};"
            " pass a source of your own, an object with the methods of moco_jax.data.sources.Source"
        )
    if channels not in (None, 1, 3):
        raise ConfigError(f"data.channels {channels} is no conversion; use 1 (gray), 3 (RGB) or None (as stored)")
    if channels is not None and not (isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8):
        raise ConfigError(f"data.channels converts 8-bit pictures and {dataset!r} holds {image.np_dtype}; leave it out")
    label = _feature(features, "label")
    classes, names = getattr(label, "num_classes", None), getattr(label, "names", None)
    records = _records(builder, dataset, split, folder)
    whole, places = os.path.realpath(builder.data_path), _places(builder, split)
    return TfdsSource(f"{dataset}/{split}", classes, records, features, channels, names, whole, places)


def is_known(dataset: str, folder: str) -> bool:
    """Whether a name is of a data set in `folder`, or of one that TFDS could prepare."""
    base = dataset.split("/")[0].split(":")[0]
    here = {name.split("/")[0] for name in found(folder)}
    return base in here or base in tfds.list_builders(with_community_datasets=False)


def data_folder(data_dir: str | None) -> str:
    """Where data sets are looked for: `data_dir`, or TFDS's own default."""
    return os.path.expanduser(data_dir or constants.DATA_DIR)


def _feature(features: Any, name: str) -> Any:
    return features[name] if name in features else None  # noqa: SIM401 (a FeaturesDict has no get)


def _builder(dataset: str, folder: str) -> Any:
    """TFDS's reader of what lies in `folder`; the code that once prepared it is not needed."""
    base = dataset.split("/")[0].split(":")[0]
    try:
        return read_only_builder.builder_from_files(dataset, data_dir=folder)
    except ValueError as error:  # not found there, or no name at all
        known = base != "digits" and base in tfds.list_builders(with_community_datasets=False)
        how = PREPARE.format(dataset if known else "NAME", folder)
        if known:
            raise ConfigError(f"data set {dataset!r} is not prepared in {folder}; prepare it once: {how}") from error
        unknown = config.unknown("data set", dataset, found(folder))
        raise ConfigError(
            f"{unknown}, looked for in {folder} (and no folder of that name is here); to prepare another: {how}"
        ) from error


def found(folder: str) -> set[str]:
    """Names of the data sets in a TFDS folder, and the digits."""
    root = tfds.core.Path(folder)
    levels = ("*/*/dataset_info.json", "*/*/*/dataset_info.json")  # name/version, name/config/version
    try:
        found = [info.parent.parent for level in levels for info in root.glob(level)]
    except OSError:
        found = []
    return {str(path.relative_to(root)) for path in found} | {"digits"}


def _records(builder: Any, dataset: str, split: str, folder: str) -> Sequence[bytes]:
    formats = {form.value for form in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ConfigError(
            f"data set {dataset!r} is prepared in {folder} as {', '.join(sorted(formats))}, and array_record is needed;"
            f" prepare it into another folder: {PREPARE.format(dataset, 'FOLDER')}"
        )
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        records = builder.as_data_source(split=split, deserialize_method=raw, file_format="array_record")
        len(records)  # a slice such as train[5:2] fails here
        return records
    except (ValueError, AssertionError) as error:
        splits = ", ".join(f"{name} ({info.num_examples} images)" for name, info in builder.info.splits.items())
        reason = str(error).split("\n")[0]
        raise ConfigError(f"split {split!r} of {dataset!r} holds no images ({reason}); its splits: {splits}") from error


def _places(builder: Any, split: str) -> tuple[range, ...]:
    """Where the records of a text in the split language stand when all splits of the data set stand in a row."""
    counts = {name: info.num_examples for name, info in builder.info.splits.items()}
    starts = dict(zip(counts, itertools.accumulate(counts.values(), initial=0), strict=False))
    parts = [
        (starts[p.splitname], p.from_ or 0, counts[p.splitname] if p.to is None else p.to)
        for p in tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
    ]
    return tuple(range(start + first, start + end) for start, first, end in parts)
