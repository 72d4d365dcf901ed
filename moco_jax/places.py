"""Where a run's folder is: on this machine, or in a bucket (gs://), which has no append, no lock and no atomic rename.

A bucket is reached by epath and gcsfs. Whatever cannot be known of it is an error, never an empty folder.
"""

import contextlib
import importlib.util
import logging
import os
import re
import shutil
import time
import typing
from collections.abc import Iterator
from pathlib import Path

from moco_jax.schema import ConfigError

LOG, SEGMENTS = "log.jsonl", "log"  # a run's log: a file; where nothing can be appended, a folder of segments
SIZE, SECONDS = 2**20, 30.0  # of a segment, after which another begins; between two writes of one
SCHEME = re.compile(r"^(?:gs:/+|[a-z][a-z0-9+.-]*://)")  # pathlib makes one slash of two


def is_remote(path: str | Path) -> bool:
    """Whether a path is in a bucket, or of another scheme, which `at` refuses."""
    return SCHEME.match(str(path)) is not None


def at(path: str | Path) -> Path:
    """The folder of a text: a pathlib.Path, or for gs://BUCKET/FOLDER an epath.Path, once the bucket has answered.

    Raises ConfigError for another scheme, without gcsfs, without access and where there is no such bucket.
    """
    if not is_remote(path):
        return Path(path)
    if not isinstance(path, str) and "://" in str(path):
        return path  # by this function
    text = re.sub(r"^gs:/+", "gs://", str(path))
    if (match := re.fullmatch(r"gs://([^/]+)/+([^/].*)", text)) is None:
        raise ConfigError(
            f"{text} is no folder of this machine, and not gs://BUCKET/FOLDER; other buckets are to be mounted"
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise ConfigError(f"{text} needs gcsfs: pip install 'moco_jax[gcs]' (or gcsfs), or mount the bucket")
    os.environ.setdefault("EPATH_USE_TF", "0")  # where TensorFlow is installed, epath would go through it
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what goes wrong is raised as well
    import fsspec
    from etils import epath

    # Arrays are written past gcsfs, by TensorStore, and by other processes: what it listed before is no answer.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    folder = typing.cast(Path, epath.Path(text))
    try:
        if not listed(folder) and not _answers(typing.cast(Path, epath.Path(f"gs://{match[1]}"))):
            raise ConfigError(f"{text}: there is no bucket {match[1]}, or it is not yours to see")
    except OSError as error:
        raise ConfigError(f"{error}; if it is for want of access: gcloud auth application-default login") from error
    return folder


def _answers(bucket: Path) -> bool:
    try:
        next(iter(bucket.iterdir()), None)
    except FileNotFoundError:
        return False
    except Exception:  # its root may be kept from who may use a folder of it
        return True
    return True


def absolute(path: Path) -> Path:
    """A path that no change of the working directory moves."""
    return path if is_remote(path) else path.absolute()


def listed(folder: Path) -> list[Path]:
    """What is in a folder, nothing where there is none; raises OSError where that cannot be known."""
    if not is_remote(folder):
        return list(folder.iterdir()) if folder.is_dir() else []
    with contextlib.suppress(FileNotFoundError), reached(folder):
        return list(folder.iterdir())
    return []


@contextlib.contextmanager
def reached(path: Path) -> Iterator[None]:
    """Whatever gcsfs raises inside, of many packages, is an OSError that names the path."""
    try:
        yield
    except Exception as error:
        if not is_remote(path) or isinstance(error, FileNotFoundError):
            raise
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise OSError(f"{path} cannot be reached ({type(error).__name__}: {first})") from error


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; raises OSError."""
    with reached(path):
        part = path if is_remote(path) else path.with_name(path.name + ".part")  # an object is whole or not there
        part.write_text(text)
        if part != path:
            part.replace(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if is_remote(path):
        typing.cast(typing.Any, path).rmtree(missing_ok=True)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def log_of(workdir: Path) -> Path:
    """Where a run writes its log."""
    return workdir / (SEGMENTS if is_remote(workdir) else LOG)


def read_log(workdir: Path) -> str:
    """All that a run has logged, in the order of writing, also where it was copied between a bucket and a disk.

    Raises FileNotFoundError where there is no log.
    """
    parts = sorted(p for p in listed(workdir / SEGMENTS) if p.suffix == ".jsonl")
    whole = [p for p in listed(workdir) if p.name == LOG]
    if not parts and not whole:
        raise FileNotFoundError(workdir / LOG)
    files = [*whole, *parts] if is_remote(workdir) else [*parts, *whole]  # what is written here is the newest
    with reached(workdir):
        return b"".join(p.read_bytes() for p in files).decode(errors="replace")


class Segments:
    """A log where nothing can be appended: objects of a folder, 00000001.jsonl and on, each written whole.

    Every start of a run begins one. It is written anew at most every SECONDS, and on `flush`: a kill loses no more.
    """

    def __init__(self, folder: Path):
        self.name = str(folder)
        self._folder, self._lines, self._written, self._next = folder, b"", b"", 0.0
        self._number = 1 + max((int(p.stem) for p in listed(folder) if p.stem.isdecimal()), default=0)

    def write(self, lines: bytes) -> int:
        """Take whole lines; raises OSError, and has not taken them, where a write was due and failed."""
        before = self._lines
        self._lines += lines
        if time.monotonic() >= self._next or len(self._lines) >= SIZE:
            try:
                self.flush()
            except OSError:
                self._lines = before
                raise
        return len(lines)

    def flush(self) -> None:
        """Write what was taken since; raises OSError."""
        if self._lines == self._written:
            return
        self._next = time.monotonic() + SECONDS  # also of a write that fails: a bucket out of reach stops no training
        write(self._folder / f"{self._number:08}.jsonl", self._lines.decode())
        self._written = self._lines
        if len(self._lines) >= SIZE:
            self._number, self._lines, self._written = self._number + 1, b"", b""

    def close(self) -> None:
        """Nothing: `flush` comes first."""
