"""Where images come from: TFDS data sets read without TensorFlow, arrays in memory, or a user's own object."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from moco_jax import config
from moco_jax.config import ConfigError
from moco_jax.data import digits, pixels
from moco_jax.data.pixels import DTYPES

SAMPLE = 64  # images that `facts` looks at
CHUNK = 1024  # records read at once for their labels
PREPARE = (
    'python -c "import tensorflow_datasets as tfds;'
    " tfds.builder({!r}, data_dir={!r}, file_format='array_record').download_and_prepare()\""
)


@runtime_checkable
class Source(Protocol):
    """Images by number. What `open_source` returns, and all that a user's own object has to offer."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> int | None: ...  # how many, where labels are classes

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """Image `index`, (H, W, C), in its storage dtype: uint8, uint16 or float32. Called from several threads."""

    def labels(self) -> np.ndarray | None:
        """(len,) integers, or None if there are none."""


class Facts(NamedTuple):
    """What the images are; `shape` is (H, W), None if sizes differ; `low` and `high` are the values mapped to 0..1."""

    records: int
    channels: int
    dtype: np.dtype
    shape: tuple[int, int] | None
    low: float
    high: float


class ArraySource:
    """Images that are in memory: N arrays (H, W, C), of one size or of many, and (N,) integer labels."""

    def __init__(self, images: Any, labels: Any = None, name: str = "arrays") -> None:
        """ConfigError for labels that are not one integer per image."""
        self.images, self.name = images, name
        self.given = None if labels is None else np.asarray(labels)
        if self.given is not None and (self.given.shape != (len(images),) or self.given.dtype.kind not in "iu"):
            raise ConfigError(
                f"{name}: {len(images)} images and labels {self.given.dtype} {self.given.shape}; give ints"
            )
        self.classes = None if self.given is None else int(self.given.max(initial=-1)) + 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]

    def labels(self) -> np.ndarray | None:
        return self.given


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split of a TFDS data set, decoded by Pillow alone (TFDS would take OpenCV where it is installed)."""

    name: str
    classes: int | None
    records: Sequence[bytes]
    features: Any  # tfds.features.FeaturesDict
    channels: int | None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, C); ConfigError for an image unlike record 0, or one that Pillow would not read without loss."""
        if not 0 <= index < len(self.records):
            raise IndexError(f"{self.name}: record {index} of {len(self.records)}")
        return _same_kind(self._decoded(index), self._first, index, self.name)

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

    @functools.cached_property
    def _first(self) -> np.ndarray:
        return self._decoded(0)

    @functools.cached_property
    def _image(self) -> Any:
        return tfds.features.FeaturesDict({"image": self.features["image"]})

    def _decoded(self, index: int) -> np.ndarray:
        feature, record = self._image["image"], self.records[index]
        if not isinstance(feature, tfds.features.Image):  # a tensor, stored as numbers
            return self._image.deserialize_example_np(record)["image"]
        skip = {"image": tfds.decode.SkipDecoding()}
        encoded = self._image.deserialize_example_np(record, decoders=skip)["image"]
        found = pixels.decode(encoded, f"{self.name}: record {index}", channels=self.channels)
        return found.view(np.float32) if feature.np_dtype == np.float32 else found  # stored as RGBA, a byte each


def open_source(dataset: str, split: str, *, data_dir: str | None = None, channels: int | None = None) -> TfdsSource:
    """Open `split` of a data set that TFDS has prepared as array_record in `data_dir` (None: TFDS's own default).

    "digits" is prepared on first use. `channels` 1 or 3 converts 8-bit images as Pillow does. Raises ConfigError for a
    data set or split that is not there, another file format, no images, and a conversion that is not one of these.
    """
    folder = os.path.expanduser(data_dir or constants.DATA_DIR)
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
    classes = getattr(_feature(features, "label"), "num_classes", None)
    return TfdsSource(f"{dataset}/{split}", classes, _records(builder, dataset, split, folder), features, channels)


def read(source: Source, index: int, *, like: np.ndarray | None = None) -> np.ndarray:
    """Image `index`, (H, W, C); ConfigError for other channels or dtype than `like` has. Errors name the record."""
    try:
        image = source[index]
    except ConfigError:
        raise
    except Exception as error:
        raise RuntimeError(f"{source.name}: record {index} cannot be read: {type(error).__name__}: {error}") from error
    if np.ndim(image) != 3 or str(image.dtype) not in DTYPES:
        raise ConfigError(
            f"{source.name}: record {index} is {getattr(image, 'dtype', type(image).__name__)} {np.shape(image)};"
            f" an image is an array (H, W, C) of {', '.join(DTYPES)}"
        )
    return image if like is None else _same_kind(image, like, index, source.name)


def names_of(source: Source) -> list[str] | None:
    """The name of every record, such as its file's path; None where a source has no method `names`."""
    names = getattr(source, "names", None)
    return None if names is None else names()


def groups_of(source: Source) -> np.ndarray | None:
    """(len,) integers: records with the same one show the same place, patient or clip; None where there are none."""
    groups = getattr(source, "groups", None)
    return None if groups is None else groups()


def facts(source: Source, data: config.Data) -> Facts:
    """What the run has to know of the images, from up to 64 of them spread over the source.

    Raises ConfigError for an object that is no source, an empty one, mixed channels or dtypes, mean or std not of one
    value per channel, and 16-bit or float images without `data.range` (naming the range measured).
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
    sizes = {image.shape[:2] for image in sample}
    channels = first.shape[2]
    if data.channels not in (None, channels):
        raise ConfigError(
            f"data.channels is {data.channels} and images of {source.name} have {_channels(first)};"
            " a source of your own is not converted, leave data.channels out"
        )
    _check_normalisation(data, channels)
    low, high = _range(data, sample)
    return Facts(len(source), channels, first.dtype, sizes.pop() if len(sizes) == 1 else None, low, high)


def _check_normalisation(data: config.Data, channels: int) -> None:
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != channels:
            raise ConfigError(f"data.{name} has length {len(values)} and images have {channels} channels; one for each")
    if not min(data.std) > 0:
        raise ConfigError(f"data.std must be above 0, not {data.std}")


def _range(data: config.Data, sample: list[np.ndarray]) -> tuple[float, float]:
    if data.range is not None:
        if not data.range[0] < data.range[1]:
            raise ConfigError(f"data.range must rise, not {data.range}")
        return data.range
    if sample[0].dtype == np.uint8:
        return 0.0, 255.0
    low, high = min(image.min() for image in sample), max(image.max() for image in sample)
    raise ConfigError(
        f"{sample[0].dtype} images need data.range=(low, high), the values mapped to 0 and 1;"
        f" {len(sample)} images measured hold {low} to {high}"
    )


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
            raise ConfigError(
                f"data set {dataset!r} is not prepared in {folder}; prepare it once, with TensorFlow: {how}"
            ) from error
        unknown = config.unknown("data set", dataset, _found(folder))
        raise ConfigError(f"{unknown}, looked for in {folder}; to prepare another, with TensorFlow: {how}") from error


def _found(folder: str) -> set[str]:
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
            f" prepare it into another folder, with TensorFlow: {PREPARE.format(dataset, 'FOLDER')}"
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


def _same_kind(image: np.ndarray, like: np.ndarray, index: int, name: str) -> np.ndarray:
    if image.shape[2] != like.shape[2]:
        raise ConfigError(
            f"{name}: record {index} has {_channels(image)} and record 0 {_channels(like)};"
            " set data.channels=3 (or 1) to convert them"
        )
    if image.dtype != like.dtype:
        raise ConfigError(f"{name}: record {index} is {image.dtype} and record 0 {like.dtype}; store all alike")
    return image


def _channels(image: np.ndarray) -> str:
    return f"{image.shape[2]} channel{'s' if image.shape[2] > 1 else ''}"
