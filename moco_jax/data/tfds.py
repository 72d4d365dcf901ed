"""TFDS data sets prepared as array_record, read without TensorFlow."""

import dataclasses
import functools
import itertools
import os
import resource
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from moco_jax import config
from moco_jax.config import ConfigError
from moco_jax.data import digits, pixels, prepare, sources

IMAGE, LABEL = "image", "label"  # the features that most data sets of images have
CHUNK = 1024  # records read at once for their labels
FILES = 1 << 16  # that this process may open at once, where the system lets it and a data set has many
SPARE, OPEN = 256, 4  # files beside those of a data set; how often its splits may be open at once
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
    image_feature: str = IMAGE  # nested ones as frames/rgb
    label_feature: str = LABEL

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
        """(len,) int64, without decoding an image; None where the data set has no integer feature of that name."""
        return self.labels_of(range(len(self)))

    def labels_of(self, rows: Sequence[int]) -> np.ndarray | None:
        """(n,) int64 of some records: whole records are read for it, which are 150 GB of ImageNet."""
        label = _feature(self.features, self.label_feature)
        if not _is_label(label):
            return None
        parse = _alone(self.label_feature, label).deserialize_example_np
        found = np.empty(len(rows), np.int64)
        for start in range(0, len(rows), CHUNK):
            records = self.records.__getitems__(list(rows[start : start + CHUNK]))  # type: ignore[attr-defined]
            found[start : start + CHUNK] = [_leaf(parse(record), self.label_feature) for record in records]
        return found

    def origin(self) -> sources.Origin | None:
        return sources.Origin(self.whole, [*itertools.chain(*self.places)]) if self.places else None

    @functools.cached_property
    def _first(self) -> tuple[int, np.ndarray]:
        return sources.first_good(self._decoded, len(self))

    @functools.cached_property
    def _image(self) -> Any:
        return _alone(self.image_feature, _feature(self.features, self.image_feature))

    def _decoded(self, index: int) -> np.ndarray:
        record, where = self.records[index], f"{self.name}: record {index}"  # what is raised here, the disk says
        name, feature = self.image_feature, _feature(self.features, self.image_feature)
        encodes = isinstance(feature, tfds.features.Image)  # else a tensor, stored as numbers
        try:
            skip = _nested(name, tfds.decode.SkipDecoding()) if encodes else None
            stored = _leaf(self._image.deserialize_example_np(record, decoders=skip), name)
        except Exception as error:  # protobuf, or what is missing in it
            why = f"is no example of the data set ({type(error).__name__})"
            raise pixels.Unreadable(f"{where} {why}", why) from error
        if not encodes:
            return stored
        found = pixels.decode(stored, where, channels=self.channels)
        return found.view(np.float32) if feature.np_dtype == np.float32 else found  # stored as RGBA, a byte each


def open_source(
    dataset: str,
    split: str,
    *,
    data_dir: str | None = None,
    channels: int | None = None,
    image: str = IMAGE,
    label: str = LABEL,
) -> TfdsSource:
    """Open `split` of a data set that TFDS has prepared as array_record in `data_dir` (None: TFDS's own default).

    `image` and `label` are features, nested ones as frames/rgb. "digits" is prepared on first use. `channels` 1 or 3
    converts 8-bit images as Pillow does. Raises ConfigError for a data set, split or feature that is not there, another
    file format, more files than may be open at once, and a conversion that is not one of these.
    """
    folder = prepare.folder_of(data_dir)
    if dataset == "digits":
        digits.prepare(folder)
    builder = _builder(dataset, folder)
    features = builder.info.features
    picture, number = _feature(features, image), _feature(features, label)
    if not _is_image(picture):
        raise ConfigError(
            f"data set {dataset!r} has no feature {image!r} of shape (H, W, C), only {_listed(features)}; name "
            "another as data.image_feature, or pass an object with the methods of moco_jax.data.sources.Source"
        )
    if label != LABEL and not _is_label(number):
        raise ConfigError(
            f"data set {dataset!r} has no feature {label!r} of one whole number, only {_listed(features)}; "
            "name another as data.label_feature"
        )
    pixels.check_channels(channels)
    if channels is not None and not (isinstance(picture, tfds.features.Image) and picture.np_dtype == np.uint8):
        raise ConfigError(
            f"data.channels converts 8-bit pictures and {dataset!r} holds {picture.np_dtype}; leave it out"
        )
    classes, names = getattr(number, "num_classes", None), getattr(number, "names", None)
    records = _records(builder, dataset, split, folder)
    whole, places = os.path.realpath(builder.data_path), _places(builder, split)
    name = f"{dataset}/{split}"
    return TfdsSource(name, classes, records, features, channels, names, whole, places, image, label)


def is_known(dataset: str, folder: str) -> bool:
    """Whether a name is of a data set in `folder`, or of one that TFDS could prepare."""
    base = dataset.split("/")[0].split(":")[0]
    here = {name.split("/")[0] for name in found(folder)}
    return base in here or base in tfds.list_builders(with_community_datasets=False)


def _feature(features: Any, name: str) -> Any:
    """The feature of a name such as frames/rgb; None where there is none, or several of it in a record."""
    for part in name.split("/"):
        if not isinstance(features, tfds.features.FeaturesDict) or part not in features:
            return None
        features = features[part]
    return features


def _is_image(feature: Any) -> bool:
    return not isinstance(feature, tfds.features.FeaturesDict | None) and len(feature.shape) == 3


def _is_label(feature: Any) -> bool:
    if isinstance(feature, tfds.features.FeaturesDict | None):
        return False
    return feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)


def _nested(name: str, leaf: Any) -> Any:
    """{"frames": {"rgb": leaf}} for frames/rgb, as TFDS nests what belongs to a feature."""
    for part in reversed(name.split("/")):
        leaf = {part: leaf}
    return leaf


def _leaf(tree: Any, name: str) -> Any:
    for part in name.split("/"):
        tree = tree[part]
    return tree


def _alone(name: str, feature: Any) -> Any:
    """A FeaturesDict of one feature: what else a record holds is not parsed."""
    return tfds.features.FeaturesDict(_nested(name, feature))


def _listed(features: Any, before: str = "") -> str:
    """Names of all features, nested ones as frames/rgb, with the shapes that are not one value."""
    parts = []
    for name, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            parts.append(_listed(feature, f"{before}{name}/"))
        elif isinstance(feature.shape, tuple):
            shape = ", ".join("?" if side is None else str(side) for side in feature.shape)
            parts.append(f"{before}{name}" + (f" ({shape})" if shape else ""))
        else:
            parts.append(f"{before}{name} (several in a record)")
    return ", ".join(parts)


def _builder(dataset: str, folder: str) -> Any:
    """TFDS's reader of what lies in `folder`; the code that once prepared it is not needed."""
    base = dataset.split("/")[0].split(":")[0]
    try:
        return read_only_builder.builder_from_files(dataset, data_dir=folder)
    except ImportError as error:  # TFDS's videos and sounds
        how = f"needs a package that is not installed ({error}); {prepare.EXTRA}"
        raise ConfigError(f"data set {dataset!r} has a feature that TFDS {how}") from error
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
    formats = prepare.formats_of(builder)
    if "array_record" not in formats:
        raise prepare.other_format(dataset, folder, str(builder.data_path), formats)
    _open_many(builder, dataset)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        records = builder.as_data_source(split=split, deserialize_method=raw, file_format="array_record")
        len(records)  # a slice such as train[5:2] fails here
        return records
    except (ValueError, AssertionError) as error:
        splits = ", ".join(f"{name} ({info.num_examples} images)" for name, info in builder.info.splits.items())
        reason = str(error).split("\n")[0]
        raise ConfigError(f"split {split!r} of {dataset!r} holds no images ({reason}); its splits: {splits}") from error


def _open_many(builder: Any, dataset: str) -> None:
    """Let this process open a file for every shard: ImageNet has over 1,024, and Linux allows so many unasked."""
    files = sum(info.num_shards for info in builder.info.splits.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:  # which is -1
        return
    most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft < min(most, SPARE + OPEN * files):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if max(soft, most) < SPARE + files:
        raise ConfigError(
            f"data set {dataset!r} has {files} files and this process may open {hard}; raise that limit, as by "
            f"`ulimit -n {SPARE + OPEN * files}`"
        )


def _places(builder: Any, split: str) -> tuple[range, ...]:
    """Where the records of a text in the split language stand when all splits of the data set stand in a row."""
    counts = {name: info.num_examples for name, info in builder.info.splits.items()}
    starts = dict(zip(counts, itertools.accumulate(counts.values(), initial=0), strict=False))
    parts = [
        (starts[p.splitname], p.from_ or 0, counts[p.splitname] if p.to is None else p.to)
        for p in tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
    ]
    return tuple(range(start + first, start + end) for start, first, end in parts)
