"""The folder of a run's checkpoints on disk: what is in it, what comes, what goes, and what is moved away."""

import contextlib
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from moco_jax import places
from moco_jax.checkpoints import arrays, verified
from moco_jax.config import ConfigError

DAMAGED, TRASH = "damaged", ".trash"  # beside the checkpoints: moved away for good; on the way out
TRIES, PAUSE = 10, 0.2  # seconds, of removing what a save left that failed


def steps_of(folder: Path) -> list[int]:
    """The finished steps in a folder, oldest first."""
    return sorted(int(p.name) for p in places.listed(folder) if _is_step(p.name) and _is_finished(p))


def _is_step(name: str) -> bool:
    """Whether a folder of this name is one of ours: 99, not 0099."""
    return name.isdecimal() and name == str(int(name))


def _is_finished(step: Path) -> bool:
    """In a bucket, where a step grows under its own name, the mark that orbax writes last says so."""
    if places.is_remote(step):
        return any(p.name == arrays.FINISHED for p in places.listed(step))
    return step.is_dir()


class Writer:
    """Writes checkpoints behind, one at a time, and removes old ones; alone in its folder."""

    def __init__(self, folder: Path, *, keep: int):
        """Removes what a killed process left half written or half removed."""
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._failure: OSError | None = None
        self._stays: str | None = None
        if not places.is_remote(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    def start(self, step: int, state: Any, about: Mapping[str, Any]) -> None:
        """Begin to write a state of numpy arrays that nobody changes; after `finish`."""
        if step in steps_of(self._folder):
            raise RuntimeError(f"checkpoint {step} was not written: {self._folder} already holds one of that step")
        self._failure = None
        self._pending = self._thread.submit(self._write, step, state, dict(about))

    def finish(self) -> OSError | None:
        """Wait for what is being written; what became of the newest save, None where it is there."""
        if self._pending is not None:
            error = self._pending.exception()
            self._pending = None  # not before: who is interrupted while waiting asks again
            if error is not None:
                self._failure = error if isinstance(error, OSError) else OSError(str(error))
        return self._failure

    def stays(self) -> str | None:
        """Said once: that old checkpoints could not be removed."""
        said, self._stays = self._stays, None
        return said

    def close(self) -> OSError | None:
        """`finish`, for the last time."""
        failure = self.finish()
        self._thread.shutdown()
        return failure

    def _write(self, step: int, state: Any, about: Mapping[str, Any]) -> None:
        """Raises OSError: orbax reports a full disk as many things."""
        try:
            verified.write(self._folder / str(step), state, about)
        except Exception as error:
            self._clean_after_failure()
            newest = max(steps_of(self._folder), default=None)
            left = "there is no other" if newest is None else f"the newest one is step {newest}, and whole"
            said = f"{type(error).__name__}: {verified.first_line(error)}"
            raise OSError(f"checkpoint {self._folder}/{step} could not be written ({said}); {left}") from error
        try:
            for old in steps_of(self._folder)[: -self._keep]:
                _dropped(self._folder / str(old))
            _empty(self._folder / TRASH)
        except OSError as error:  # no loss of a checkpoint; the next save tries again
            self._stays = f"checkpoint {self._folder}/{step} is written, but older ones stay ({error})"

    def _clean_after_failure(self) -> None:
        """`_clean`, until nothing comes any more: of a save that failed other writes may still be under way."""
        for _ in range(TRIES):
            self._clean()
            time.sleep(PAUSE)
            with contextlib.suppress(OSError):
                if not any(arrays.TEMPORARY in path.name for path in places.listed(self._folder)):
                    return

    def _clean(self) -> None:
        with contextlib.suppress(OSError):  # whatever is in the way will be said by the next save
            _empty(self._folder / TRASH)
            for path in places.listed(self._folder):
                half = places.is_remote(path) and path.name.isdecimal() and not _is_finished(path)
                if half or arrays.TEMPORARY in path.name:
                    places.remove(path)


def newest_whole(folder: Path) -> tuple[int | None, dict[int, str]]:
    """The newest step that is whole, and what is wrong with each after it; None: there are no checkpoints.

    Raises ConfigError where none is whole, or one cannot be read now for another reason.
    """
    faults: dict[int, str] = {}
    for step in reversed(steps_of(folder)):
        try:
            verified.check(folder / str(step))
        except verified.Fault as fault:
            faults[step] = str(fault)
        except Exception as error:
            said = f"{type(error).__name__}: {verified.first_line(error)}"
            raise ConfigError(f"checkpoint {folder}/{step} cannot be read now ({said}); try again") from error
        else:
            return step, faults
    if not faults:
        return None, {}
    raise none_whole(folder, faults)


def none_whole(folder: Path, faults: Mapping[int, str]) -> ConfigError:
    """The error for a folder in which every checkpoint is damaged."""
    said = "; ".join(f"{step}: {fault}" for step, fault in faults.items())
    return ConfigError(
        f"no checkpoint in {folder} is whole ({said}): nothing was trained or moved; put a copy of one in its place, "
        "or begin anew in another --workdir"
    )


def quarantined(folder: Path, step: int, fault: str) -> str:
    """Move a damaged checkpoint away, where nothing takes it for one; says so."""
    place = _moved(folder / str(step), folder / DAMAGED)
    return f"checkpoint {folder}/{step} is damaged ({fault}) and was moved to {place}"


def _dropped(step: Path) -> None:
    """Have a step no longer listed, at once: a kill comes before that or after it. In a bucket it is then gone."""
    if places.is_remote(step):
        (step / arrays.FINISHED).unlink()
        places.remove(step)
    else:
        _moved(step, step.parent / TRASH)


def _moved(path: Path, into: Path) -> Path:
    """Rename a folder into another one, under a name that is free there; in a bucket file by file."""
    if places.is_remote(into):
        places.write(into / "README.txt", "Checkpoints that were found damaged.\n")  # a folder is what has a file
    else:
        into.mkdir(exist_ok=True)
    place, count = into / path.name, 0
    while place.exists():
        count += 1
        place = into / f"{path.name}.{count}"
    return path.rename(place)


def _empty(folder: Path) -> None:
    for path in places.listed(folder):
        places.remove(path)
