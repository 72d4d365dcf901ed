"""A TFDS data set of TFRecord files written once more as array_record, without TensorFlow or Beam.

Shard by shard, so that names, lengths, order and slices of splits stay. A shard gets its name when it has been read
back, and the data set its dataset_info.json, which makes it one, when every shard has its name.
"""

import concurrent.futures
import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from array_record.python import array_record_module
from tensorflow_datasets.core import file_adapters
from tqdm import tqdm

from moco_jax.config import ConfigError
from moco_jax.data import lock, tfrecord
from moco_jax.data.shards import FEATURES, INFO, Plan, Shard, planned

UNFINISHED = INFO + ".unfinished"  # what INFO will be; it marks a conversion that is under way, and is its lock
PART = ".part"  # a shard that is being written
# One record in a group, as TFDS writes them, to be read at random. Images are compressed already: trying to costs four
# times the processor time and saves 0.4 % (photos of ImageNet).
OPTIONS = "group_size:1,uncompressed"
AGAIN = "run the same command again, and it goes on from there"


def convert(source: str, data_dir: str | None, *, workers: int) -> tuple[Plan, bool]:
    """Write the data set in the folder `source` into a TFDS folder (None: TFDS's own default) as array_record.

    False if it was there already. Several threads convert a shard each; progress goes to stderr, where that is a
    terminal. Raises ConfigError for a folder that is no data set of TFRecord files, a shard that is missing, damaged or
    of another length, a full disk, and a place where something else is; finished shards then stay for the next call.
    """
    plan = planned(source, data_dir)
    if _is_there(plan):
        return plan, False
    with _held(plan):
        if _is_there(plan):  # another process ended between the first look and the lock
            (plan.target / UNFINISHED).unlink(missing_ok=True)
            return plan, False
        todo = [shard for shard in plan.shards if not _is_finished(shard)]
        _check_space(plan.target, todo)
        with tqdm(total=plan.records, unit="record", disable=None) as bar:  # None: not where stderr is no terminal
            bar.update(plan.records - sum(shard.records for shard in todo))
            _convert_all(todo, workers, bar.update)
        _complete(plan)
    return plan, True


def _is_there(plan: Plan) -> bool:
    """Whether the data set is there already; ConfigError where anything else is."""
    try:
        found = (plan.target / INFO).read_text()
    except FileNotFoundError:
        held = sorted(path.name for path in plan.target.iterdir()) if plan.target.is_dir() else []
        if held and UNFINISHED not in held:
            raise ConfigError(
                f"{plan.target} holds other files, such as {held[0]}; name another folder: --data_dir=DIR"
            ) from None
        return False
    except OSError as error:
        raise _unwritable(plan.target, error) from error
    if found != plan.info:
        raise ConfigError(f"{plan.target} holds another data set; name another folder: --data_dir=DIR")
    return True


@contextlib.contextmanager
def _held(plan: Plan) -> Iterator[None]:
    """The target held against other processes, and marked as a conversion of this very data set."""
    try:
        plan.target.mkdir(parents=True, exist_ok=True)
        mark = (plan.target / UNFINISHED).open("a+")
    except OSError as error:
        raise _unwritable(plan.target, error) from error
    with mark:
        lock.take(mark, f"converting into {plan.target}")
        mark.seek(0)
        found = mark.read()
        if not plan.info.startswith(found):  # a killed process may have left a part of it
            raise ConfigError(
                f"{plan.target} holds an unfinished conversion of another data set; remove it, or name another folder: "
                "--data_dir=DIR"
            )
        mark.write(plan.info[len(found) :])
        _to_disk(mark.fileno(), mark.flush)
        yield


def _is_finished(shard: Shard) -> bool:
    """Whether an earlier call wrote and verified a shard, and it is still whole."""
    return shard.target.is_file() and _count(shard.target) == shard.records


def _count(path: Path) -> int:
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count: int = reader.num_records()
        reader.close()  # the first to say that a file is no such one: until then it holds no records
    except (RuntimeError, ValueError):
        return -1
    return count


def _needed(shard: Shard) -> int:
    """Bytes that a shard will take, or fewer: two blocks of 64 KiB, 54 bytes a record, a head of 24 bytes a block."""
    size = shard.source.stat().st_size
    return size + size // 1000 + 64 * shard.records + (1 << 17)


def _check_space(target: Path, shards: list[Shard]) -> None:
    needed = sum(map(_needed, shards))
    free = shutil.disk_usage(target).free
    if needed > free:
        raise ConfigError(
            f"{target} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed; make room, or name another "
            "folder: --data_dir=DIR"
        )


def _convert_all(shards: list[Shard], workers: int, done: Callable[[int], object]) -> None:
    """Every shard, several at once; at the first error, or Ctrl-C, all stop and remove what is half written."""
    stop, lock = threading.Event(), threading.Lock()

    def go_on(records: int) -> bool:
        with lock:
            done(records)
        return not stop.is_set()

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_convert, shard, go_on) for shard in shards]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _convert(shard: Shard, go_on: Callable[[int], bool]) -> None:
    """One shard, written beside its name, read back, and then named. Nothing is left of it where that stops."""
    part = shard.target.with_name(shard.target.name + PART)
    try:
        shard.target.parent.mkdir(parents=True, exist_ok=True)
        checksums = _write(shard, part, go_on)
        if checksums is None:
            return
        _verify(part, checksums)
        with part.open("rb") as file:
            _to_disk(file.fileno())
        os.replace(part, shard.target)
    except OSError as error:
        raise _unwritable(shard.target.parent, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _write(shard: Shard, part: Path, go_on: Callable[[int], bool]) -> list[int] | None:
    """The records of a shard in a new file, and their checksums; None where it was told to stop."""
    checksums: list[int] = []
    try:
        writer = array_record_module.ArrayRecordWriter(str(part), OPTIONS)
        try:
            for record, checksum in tfrecord.read(shard.source):
                writer.write(record)
                checksums.append(checksum)
                if not go_on(1):
                    return None
        finally:
            writer.close()  # the first to say that the disk is full: until then records are taken and lost
    except RuntimeError as error:
        raise ConfigError(f"{part} cannot be written: {str(error).split(';')[0]}; make room, and {AGAIN}") from error
    if len(checksums) != shard.records:
        raise ConfigError(
            f"{shard.source} holds {len(checksums)} records, and {INFO} says {shard.records}; {tfrecord.FETCH}"
        )
    return checksums


def _verify(part: Path, checksums: list[int]) -> None:
    """That a file gives back the records of these checksums, all of them, in this order."""
    number = 0
    try:
        reader = array_record_module.ArrayRecordReader(str(part))
        try:
            whole = reader.num_records() == len(checksums)
            while whole and number < len(checksums):
                whole = tfrecord.masked(reader.read()) == checksums[number]
                number += whole
        finally:
            reader.close()
    except (RuntimeError, ValueError, IndexError):
        whole = False
    if not whole:
        raise ConfigError(f"{part}: record {number} is not what was written; look at this disk, and {AGAIN}")


def _complete(plan: Plan) -> None:
    """Everything but records copied, features.json last, by which TFDS knows a data set; then the mark becomes INFO."""
    try:
        beside = [
            path
            for path in sorted(plan.source.iterdir(), key=lambda path: path.name == FEATURES)
            if path.is_file() and path.name != INFO and not file_adapters.is_example_file(path.name)
        ]
        for path in beside:
            shutil.copyfile(path, plan.target / path.name)
        os.replace(plan.target / UNFINISHED, plan.target / INFO)
        folder = os.open(plan.target, os.O_RDONLY)
        _to_disk(folder)
        os.close(folder)
    except OSError as error:
        raise _unwritable(plan.target, error) from error


def _to_disk(descriptor: int, flush: Callable[[], object] = lambda: None) -> None:
    flush()
    os.fsync(descriptor)


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder} cannot be written ({error.strerror or error}); {AGAIN}, or name another: --data_dir")
