"""The images of a tree of folders, by name, and an index of them, so that a large tree is read once.

The index is checked by one stat of every folder: its times are others when something in it was added, removed or
renamed. Its time of modification (mtime) alone would not do, as tar, rsync and cp -a set it to what it was elsewhere;
its time of change (ctime) is the disk's own. Only such folders are read again, and those that hold a link to a folder
or to nothing, as what a link leads to may come and go without that. What a file holds is not in it.
"""

import gzip
import hashlib
import json
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".npy", ".bmp", ".pgm", ".ppm")  # of images, any case
OWN = ".moco_jax"  # what our own files beside images begin with; they are not counted
MANY = 10_000  # images from which on a tree has an index; fewer are read in a fraction of a second
YOUNG = 2_000_000_000  # ns: the coarsest clock of a file system; a change within it may leave times as they were
UNSURE = (-1, -1)  # no folder's times
FORMAT = {"format": 2, "suffixes": list(SUFFIXES)}  # an index of another kind is not read
# what a file of other bytes, of other JSON or of none raises
DAMAGE = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError)
DIGITS = re.compile(r"([0-9]+)")


class Folder(NamedTuple):
    """What lay in one folder of a tree."""

    times: tuple[int, int]  # of modification and of change, in ns since 1970; UNSURE where a change might leave them
    folders: list[str]  # in it, but hidden ones
    names: list[str]  # of images, in natural order
    left_out: int  # other files, and hidden ones


def read(root: Path) -> dict[str, Folder]:
    """{folder below `root`, "" for itself: what lies in it}, from the index where that is right, which is then kept.

    Raises OSError for a folder that cannot be read.
    """
    known = kept(root)
    found = scan(root, known)
    if found != known and sum(len(folder.names) for folder in found.values()) >= MANY:
        keep(root, found)
    return found


def scan(root: Path, known: Mapping[str, Folder]) -> dict[str, Folder]:
    """The same from the disk, but for folders that have not changed since they were `known`."""
    found: dict[str, Folder] = {}
    real = os.path.realpath(root)
    waiting = [("", real, frozenset({real}))]
    while waiting:
        place, real, above = waiting.pop()
        folder = os.path.join(root, place)
        before = time.time_ns()
        now = os.stat(folder)
        times = (now.st_mtime_ns, now.st_ctime_ns)
        last = known.get(place)
        if last is None or last.times != times:
            inside, links = _inside(folder)
            last = Folder(UNSURE if links or max(times) >= before - YOUNG else times, *inside)
        found[place] = last
        for name in last.folders:
            path = os.path.join(real, name)
            path = os.path.realpath(path) if os.path.islink(path) else path
            if path not in above:  # a link to a folder above would never end
                waiting.append((f"{place}/{name}" if place else name, path, above | {path}))
    return found


def _inside(folder: str) -> tuple[tuple[list[str], list[str], int], bool]:
    """What lies in a folder, and whether one of it is a link to a folder or to nothing."""
    folders, names, left_out, links = [], [], 0, False
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            hidden = name.startswith(".")
            links |= entry.is_symlink() and not entry.is_file()
            if entry.is_dir():
                if not hidden:
                    folders.append(name)
            elif not hidden and name.lower().endswith(SUFFIXES) and _may_be_read(entry):
                names.append(name)
            elif not name.startswith(OWN):
                left_out += 1
    return (folders, sorted(names, key=natural), left_out), links


def _may_be_read(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a file, or a link to nothing, which is a bad file: reading a pipe or a device may never end."""
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts frame2 before frame10."""
    parts: list[str | int] = DIGITS.split(name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def kept(root: Path) -> dict[str, Folder]:
    """What the index of a tree says, whether or not that is still right; {} where there is none that can be read."""
    there = [file for file in places(root) if os.path.isfile(file)]
    for file in sorted(there, key=os.path.getmtime, reverse=True):  # the last that could be written
        try:
            with gzip.open(file) as packed:  # which holds a check sum
                found = json.loads(packed.read())
            if {name: found[name] for name in FORMAT} == FORMAT:
                return {place: _folder(*folder) for place, folder in found["folders"].items()}
        except DAMAGE:  # as good as none: it is made again
            continue
    return {}


def _folder(times: object, folders: object, names: object, left_out: object) -> Folder:
    if not (isinstance(times, list) and isinstance(folders, list) and isinstance(names, list)):
        raise TypeError
    modified, changed = times
    if not type(modified) is type(changed) is type(left_out) is int:
        raise TypeError
    if not {*map(type, folders), *map(type, names)} <= {str}:
        raise TypeError
    return Folder((modified, changed), folders, names, left_out)


def keep(root: Path, found: Mapping[str, Folder]) -> None:
    """Write the index, whole or not at all, where that is possible; where it is not, the next reading takes as long."""
    text = json.dumps({**FORMAT, "folders": found}, separators=(",", ":")).encode()  # ASCII: any name comes back
    packed = gzip.compress(text, 1)
    for file in places(root):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file, packed)
            return
        except OSError:
            continue


def places(root: Path) -> Iterator[Path]:
    """Where an index may be: beside the tree, so that all who read it share one, or in the user's folder for caches."""
    real = os.path.realpath(root)
    name = f"{OWN}-{os.path.basename(real)}.json.gz"
    yield Path(os.path.dirname(real), name)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    digest = hashlib.blake2b(os.fsencode(real), digest_size=8).hexdigest()
    yield Path(os.path.expanduser(caches), "moco_jax", f"{digest}{name}")


def write(file: Path, content: bytes, *, by: Path | None = None, changed: int | None = None) -> None:
    """All of the content or nothing, whoever else writes the same file at the same time; raises OSError.

    A part of it, which a kill may leave, is in the folder `by` of the same disk (None: beside the file). `changed` is
    the time of modification that the file gets, in ns since 1970 (None: now).
    """
    part = (by or file.parent) / f"{OWN}-{secrets.token_hex(8)}.part"
    try:
        part.write_bytes(content)
        if changed is not None:
            os.utime(part, ns=(changed, changed))
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
