"""A TFDS data set of TFRecord files, and where each of them goes as array_record; reads no record."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from tensorflow_datasets.core import naming

from moco_jax.config import ConfigError
from moco_jax.data import prepare

INFO, FEATURES = "dataset_info.json", "features.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records, there and to be."""

    source: Path
    target: Path
    records: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A data set as TFRecord, and where it goes as array_record."""

    name: str  # NAME or NAME/CONFIG
    source: Path
    target: Path
    shards: list[Shard]
    info: str  # what dataset_info.json will hold

    @property
    def records(self) -> int:
        return sum(shard.records for shard in self.shards)


def planned(source: str, data_dir: str | None) -> Plan:
    """What would be converted into what; reads no record. Raises ConfigError for what cannot be."""
    for path in (source, prepare.folder_of(data_dir)):
        if "://" in path:
            raise ConfigError(f"{path} is no folder on a disk; copy the data set to one first")
    folder, root = Path(source).expanduser(), Path(prepare.folder_of(data_dir))
    info = _info(folder)
    try:
        parts = [info["name"], *([info["configName"]] if info.get("configName") else []), info["version"]]
        target = root.joinpath(*parts)
        shards = [shard for split in info["splits"] for shard in _shards(info["name"], split, folder, target)]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder / INFO} is none of TFDS ({type(error).__name__}: {error})") from error
    if not shards:
        raise ConfigError(f"{folder / INFO} names no files of records: nothing to convert")
    names = [*parts, *(os.path.relpath(shard.target, target) for shard in shards)]
    if strange := [name for name in names if name.startswith((".", "/")) or ".." in name]:
        raise ConfigError(f"{folder / INFO} leads out of its folder: {strange[0]!r}")
    if os.path.realpath(folder) == os.path.realpath(target):
        raise ConfigError(f"{folder} itself is where it would go; name another folder for data sets: --data_dir=DIR")
    if missing := [shard.source.name for shard in shards if not shard.source.is_file()]:
        raise ConfigError(f"{len(missing)} of {len(shards)} files are missing in {folder}, such as {missing[0]}")
    written = {key: value for key, value in info.items() if key != "alternativeFileFormats"}
    written["fileFormat"] = "array_record"
    return Plan("/".join(parts[:-1]), folder, target, shards, json.dumps(written, indent=2))


def _info(folder: Path) -> dict[str, Any]:
    """dataset_info.json of a data set that is there as TFRecord."""
    if not (folder / INFO).is_file():
        below = sorted(str(path.parent) for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/{INFO}"))
        hint = f"; below it: {', '.join(below[:5])}" if below else "; name the folder NAME/VERSION that TFDS made"
        raise ConfigError(f"{folder} is no data set of TFDS: it has no {INFO}{hint}")
    try:
        info = json.loads((folder / INFO).read_text())
        formats = {info.get("fileFormat") or "tfrecord", *info.get("alternativeFileFormats", [])}  # none: an old one
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{folder / INFO} cannot be read ({error})") from error
    if "array_record" in formats:
        raise ConfigError(f"{folder} is prepared as array_record already, which is what is read: nothing to convert")
    if "tfrecord" not in formats:
        raise ConfigError(f"{folder} is prepared as {', '.join(sorted(formats))}; TFRecord is what can be converted")
    if not (folder / FEATURES).is_file():
        raise ConfigError(
            f"{folder} has no {FEATURES}: TFDS before 4.0 made it, and only that can read it; prepare anew"
        )
    return info


def _shards(name: str, split: dict[str, Any], folder: Path, target: Path) -> list[Shard]:
    """The files of a split, in TFDS's order, that of their numbers."""
    lengths = [int(length) for length in split["shardLengths"]]
    pattern = split.get("filepathTemplate") or naming.DEFAULT_FILENAME_TEMPLATE
    there, to_be = (
        naming.ShardedFileTemplate(where, pattern, name, split["name"], suffix).sharded_filepaths(len(lengths))
        for where, suffix in ((folder, "tfrecord"), (target, "array_record"))
    )
    return [Shard(Path(a), Path(b), length) for a, b, length in zip(there, to_be, lengths, strict=True)]
