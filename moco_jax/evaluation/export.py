"""Features of images as a file: which image is which by name, label and group; written whole or not at all."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from moco_jax import config as schema
from moco_jax.config import ConfigError
from moco_jax.data import opening, sources
from moco_jax.data.sources import Source
from moco_jax.evaluation import loading
from moco_jax.evaluation.features import FEATURES, extract

TABLES = ("class_names", "group_names")  # by number, not by image

Writer = Callable[[BinaryIO, dict[str, np.ndarray]], None]


def export(
    run: str | Path,
    output: str | Path,
    *,
    images: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    feature: str = "backbone",
    batch_size: int = 256,
    say: Callable[[str], None] | None = None,
) -> dict[str, np.ndarray]:
    """Encode the images that a run was trained on, or `images`, into `output` (.npz or .parquet); returns the arrays.

    `run` is the folder of one, or a file of weights, which needs `images`: a path to a folder, a .csv or an .npy file,
    or a TFDS data set; its split is `train` where none is named. `say` is told which encoder it is. Raises ConfigError
    for an output that may not or cannot be written, a feature that there is not, a run without a checkpoint, and images
    of another kind than the encoder's.
    """
    run, output = Path(run), Path(output)
    if feature not in FEATURES:
        raise schema.unknown("feature", feature, FEATURES)
    writer = _writer(output)
    loaded = loading.load(run)
    if loaded.source and images is None:
        raise ConfigError(f"{run} was trained on a source of your own, {loaded.source!r}: say which images to encode")
    loaded.check_feature(feature, "--feature")
    data = loaded.config.data
    if images is None and not opening.names_images(data):
        raise ConfigError(f"{run} is a file of weights, which names no images: say which to encode, by --images=IMAGES")
    if say is not None:
        say(f"features of {loaded.named(run)}")
    split = split or (data.split if images is None else "train")
    source = opening.open_split(data, split, name=images, data_dir=data_dir)
    if say is not None:
        say(f"{len(source):,} images: split {split} of {images or 'the images it was trained on'}")
    loaded.trained.preprocessing.check(sources.read(source, 0), f"{source.name}: record 0")
    with _whole(output, run) as file, tqdm(total=len(source), unit="image", disable=None) as bar:  # None: no terminal
        found = extract(
            loaded.trained,
            source,
            batch_size=min(batch_size, len(source)),
            workers=data.workers,
            done=bar.update,
        )
        arrays = {"features": found[feature].astype(np.float32), **described(source, split)}
        writer(file, arrays)
    return arrays


def described(source: Source, split: str) -> dict[str, np.ndarray]:
    """What is known of each record: names (N,) and ids (N,); where there are any, labels, groups and their names."""
    count = len(source)
    known: dict[str, Any] = {
        "names": sources.names_of(source) or [f"{split}/{i}" for i in range(count)],
        "ids": np.arange(count),
        "labels": source.labels(),
        "groups": sources.groups_of(source),
        "class_names": sources.class_names_of(source),
        "group_names": sources.group_names_of(source),
    }
    return {name: np.asarray(values) for name, values in known.items() if values is not None}


def write_npz(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """The arrays under their names; `numpy.load` needs no pickle for them."""
    np.savez(file, allow_pickle=False, **arrays)


def write_parquet(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """A row for each image: features as a list of fixed length; names of classes and groups as JSON in the metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {name: pa.array(values) for name, values in arrays.items() if name not in ("features", *TABLES)}
    features = arrays["features"]
    columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    table = pa.table(columns)
    named = {name: json.dumps(arrays[name].tolist()) for name in TABLES if name in arrays}
    table = table.replace_schema_metadata(named or None)
    parquet.write_table(table, file)


FORMATS: dict[str, Writer] = {".npz": write_npz, ".parquet": write_parquet}  # by the end of the file's name


def _writer(output: Path) -> Writer:
    if output.suffix not in FORMATS:
        raise ConfigError(f"{output} must end in {' or '.join(FORMATS)}: that says what is written")
    if output.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ConfigError('.parquet needs pyarrow: pip install "moco_jax[parquet]", or write .npz') from None
    return FORMATS[output.suffix]


@contextlib.contextmanager
def _whole(output: Path, run: Path) -> Iterator[BinaryIO]:
    """A file that takes the name of `output` once it is whole; ConfigError where that is the run's own, or no folder.

    It is opened before anything is computed, so that a folder that cannot be written is known at once.
    """
    inside = output.resolve().relative_to(run.resolve()).parts if _below(output, run) else ()
    if inside and inside[0] == "checkpoints":
        raise ConfigError(f"{output} lies among the checkpoints of {run}; write elsewhere")
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"{output} cannot be written: there is no folder {output.parent}")
    if output.is_dir():
        raise ConfigError(f"{output} is a folder; give a file")
    part = output.with_name(output.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _below(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents
