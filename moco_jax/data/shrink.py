"""A copy of a folder or manifest of images at training size: the same names, by threads, taken up where it stopped."""

import contextlib
import csv
import functools
import importlib.util
import io
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from moco_jax.config import ConfigError
from moco_jax.data import files, lock, pixels, smaller, threads, tree

RECORD = f"{tree.OWN}-shrink.json"  # in the copy: how it was made; and the lock of who makes it
PARTS = f"{tree.OWN}-parts"  # in it too, while it is made: files that are being written

AGAIN = "the same command goes on"


class Done(NamedTuple):
    """What became of one image."""

    name: str
    what: str  # "smaller", "copied", "kept" from an earlier start, or "bad"
    before: int = 0  # bytes
    after: int = 0
    problem: str = ""


@contextlib.contextmanager
def begun(source: str, target: str, *, short_side: int, quality: int) -> Iterator[tuple[files.Listing, Path]]:
    """The images to copy and the folder for them, which is made, says how in RECORD, and is held meanwhile.

    `source` is a folder as `files.list_folder` has it, or a .csv manifest whose paths lie below its own folder. Raises
    ConfigError for a target that lies in the source or holds anything else, another way than that of an earlier start,
    another process at work in it, and TIFFs without tifffile.
    """
    manifest = _is_manifest(source)
    listing = files.list_manifest(source) if manifest else files.list_folder(source)
    root, folder = listing.root.resolve(), Path(target).expanduser()
    outside = [path for path in listing.paths if os.path.isabs(path) or path.startswith("../")]
    if outside:
        raise ConfigError(
            f"{source} names {len(outside)} images that are not below its folder, such as {outside[0]}, and a copy "
            "keeps the names: write their paths relative to a folder that holds all, and put the manifest there"
        )
    if folder.resolve().is_relative_to(root):
        raise ConfigError(f"{target} is {'' if folder.resolve() == root else 'in '}{root}; copy to another folder")
    tiffs = [path for path in listing.paths if path.lower().endswith((".tif", ".tiff"))]
    if tiffs and importlib.util.find_spec("tifffile") is None:
        raise ConfigError(f"{len(tiffs)} images are TIFFs, such as {tiffs[0]}: {pixels.TIFF_EXTRA}")
    origin = str(Path(source).expanduser().resolve())
    with contextlib.ExitStack() as held:
        try:
            record = held.enter_context(_opened(folder, target))
            lock.take(record, f"copying into {target}")
            _settle(record, target, {"source": origin, "short_side": short_side, "quality": quality})
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield listing, folder


def made_as(folder: Path) -> str | None:
    """How the copy that a folder lies in was made, in a few words; None where it lies in none."""
    for place in (folder, *folder.parents):
        try:
            how = json.loads((place / RECORD).read_text())
            return f"short side {how['short_side']}, quality {how['quality']}"
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _opened(folder: Path, name: str) -> TextIO:
    """The RECORD of a folder, which is made; ConfigError for one that is something else."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RECORD
    if not file.exists() and any(not name.startswith(tree.OWN) for name in os.listdir(folder)):
        raise ConfigError(f"{name} holds files that are no copy of ours; name a folder that is empty or new")
    return file.open("a+")


def _settle(record: TextIO, name: str, how: dict[str, str | int]) -> None:
    """Write a RECORD, or find the same in it; ConfigError for anything else."""
    text = json.dumps(how)
    try:
        record.seek(0)
        found = record.read()
        if text.startswith(found):  # a killed process may have left a part of it
            record.write(text[len(found) :])
            record.flush()
            return
        last = json.loads(found)
    except ValueError as error:  # no JSON, or no text
        raise ConfigError(f"{record.name} is damaged; remove {name}, and copy again") from error
    other = ", ".join(f"{key}={last.get(key)!r} and not {how[key]!r}" for key in how if last.get(key) != how[key])
    raise ConfigError(f"{name} was begun with {other}: use the same, or another folder (it says so in {record.name})")


def copy(listing: files.Listing, folder: Path, *, short_side: int, quality: int, workers: int) -> Iterator[Done]:
    """Copy all images by `workers` threads; what became of each, in order.

    Those whose shorter side is longer than `short_side` are made smaller (`smaller.smaller`), others are copied byte
    for byte. A copy comes by a rename, so that those that are there are whole. It has its source's time of modification
    (mtime); one of another time, as far as the coarsest clock can tell, is made again, and that of an image that is bad
    now is removed. Raises ConfigError where the disk does not give a source, whose copy stays, or take its copy.
    """
    folders = functools.cache(functools.partial(os.makedirs, exist_ok=True))
    parts = folder / PARTS

    def bad(name: str, problem: str) -> Done:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        return Done(name, "bad", problem=problem)

    def one(name: str) -> Done:
        source, target = listing.root / name, folder / name
        try:
            last = _stat(target)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            before = pixels.patiently(os.stat, source)
            if last and last.st_size and abs(last.st_mtime_ns - before.st_mtime_ns) < tree.YOUNG:
                return Done(name, "kept", before.st_size, last.st_size)
            encoded = pixels.patiently(Path.read_bytes, source)
        except FileNotFoundError:
            return bad(name, f"{name} is not there")
        except OSError as error:  # which says nothing of the image
            raise ConfigError(
                f"{source} cannot be read ({error.strerror or error}); what is done is kept, and {AGAIN}"
            ) from error
        try:
            made = smaller.smaller(encoded, name, short_side=short_side, quality=quality)
        except ConfigError as error:
            return bad(name, str(error))
        content = encoded if made is None else made
        try:
            folders(parts)
            folders(target.parent)
            tree.write(target, content, by=parts, changed=before.st_mtime_ns)
        except OSError as error:
            raise _unwritable(folder, error) from error
        return Done(name, "copied" if made is None else "smaller", len(encoded), len(content))

    yield from threads.in_order(one, listing.paths, workers=workers)
    shutil.rmtree(parts, ignore_errors=True)  # and what earlier starts, killed, left in it


def left_over(listing: files.Listing, folder: Path) -> list[str]:
    """Names of images in the copy that its source does not list, sorted; ConfigError for a copy that cannot be read."""
    try:
        there = tree.scan(folder, {})
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror or error}") from error
    names = {f"{place}/{name}" if place else name for place in there for name in there[place].names}
    return sorted(names.difference(listing.paths))


def write_manifest(source: str, folder: Path, bad: Collection[str]) -> Path | None:
    """Where the source is a manifest, the same beside the copies, without the rows of images that are `bad`."""
    if not _is_manifest(source):
        return None
    with Path(source).expanduser().open(newline="", encoding="utf-8-sig") as text:
        header, *rows = csv.reader(text)
    place = [name.strip() for name in header].index("path")
    kept = [row for row in rows if row and os.path.normpath(row[place].strip()) not in bad]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *kept])
    file = folder / Path(source).name
    try:
        tree.write(file, out.getvalue().encode())
    except OSError as error:
        raise _unwritable(folder, error) from error
    return file


def _is_manifest(source: str) -> bool:
    return source.lower().endswith(".csv")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder} cannot be written: {error.strerror or error}; what is done is kept, and {AGAIN}")
