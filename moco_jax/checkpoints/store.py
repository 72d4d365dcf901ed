"""A run's checkpoints: the whole state and everything needed to continue from it, known to be what was saved."""

import contextlib
import fcntl
import functools
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax import __version__, parallel, places
from moco_jax.checkpoints import verified
from moco_jax.checkpoints.folder import Writer, newest_whole, none_whole, quarantined, steps_of
from moco_jax.config import ConfigError
from moco_jax.state import FORMAT

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "tensorflow-datasets")
NONE, FAILED = -1, -2  # what the first process tells the others in place of a step


class Damaged(ConfigError):
    """A checkpoint is not what was saved; the text says what differs, where, and what to do."""


def describe(config: Mapping[str, Any], objects: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint says of itself: format, resolved config, labels of the objects in use, package versions."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions |= {"moco_jax": __version__, "python": platform.python_version()}
    return {"format": FORMAT, "config": dict(config), "objects": dict(objects), "versions": versions}


class Store:
    """Checkpoints under a folder, newest `keep` kept, written in the background by the first process.

    A step appears by a rename when it is complete and goes by a rename, so that a kill at any moment leaves whole ones
    alone. Everything that is read is compared with the digests that were saved with it.
    """

    def __init__(self, folder: Path, *, keep: int = 1, read_only: bool = False):
        """Removes what a killed process left half done; raises ConfigError where a folder to read does not exist."""
        if read_only and not folder.is_dir():
            raise ConfigError(f"no checkpoints in {folder}: give the folder of a run, the one that train wrote to")
        self.folder = folder
        self._keep, self._read_only = keep, read_only
        self._writer: Writer | None = None
        if not read_only and parallel.is_first_process():
            self._writer = Writer(folder, keep=keep)

    def latest(self) -> int | None:
        """The newest finished step, or None; waits for one that is being written."""
        if self._writer is not None:
            self._writer.finish()
        return max(steps_of(self.folder), default=None)

    def holds(self, step: int) -> bool:
        """Whether a step is there and finished; a run that goes on removes old ones."""
        return step in steps_of(self.folder)

    def save(
        self, step: int, state: Any, about: Mapping[str, Any], *, warn: Callable[[str], None] | None = None
    ) -> None:
        """Write a replicated state; returns once it is copied to the host, the rest happens behind.

        `warn` hears that the save before could not be written, and this one is tried; without it that is an OSError.
        It also hears of old ones that cannot be removed.
        """
        try:
            self.wait(warn)
        except OSError as error:
            if warn is None:
                raise
            warn(str(error))
        if self._writer is not None:
            self._writer.start(step, _copied(state), about)

    def wait(self, warn: Callable[[str], None] | None = None) -> None:
        """Wait for what is being written; raises OSError where the newest save failed. `warn` as in `save`."""
        if self._writer is None:
            return
        failure, stays = self._writer.finish(), self._writer.stays()
        if warn is not None and stays is not None:
            warn(stays)
        if failure is not None:
            raise failure

    def whole(self) -> tuple[int | None, list[str]]:
        """The newest step that is whole, on all processes, and a line for each damaged one after it; None: no step.

        The first process reads, decides, and moves the damaged ones to `damaged/`. Raises ConfigError, and moves
        nothing, where there are checkpoints and none of them is whole.
        """
        found, faults, error = None, dict[int, str](), None
        if self._writer is not None:
            try:
                found, faults = newest_whole(self.folder)
            except ConfigError as raised:
                error = raised
        answer = parallel.gathered(FAILED if error else NONE if found is None else found)[0]
        if answer == FAILED:
            raise error or ConfigError(f"no checkpoint in {self.folder} can be used: process 0 says why")
        lines = [quarantined(self.folder, step, fault) for step, fault in faults.items()]
        return (None if answer == NONE else answer), [f"{line}; continuing from step {found}" for line in lines]

    def described(self) -> tuple[int | None, dict[str, Any] | None]:
        """The newest step whose description is whole, and that; None: no step. Raises ConfigError where none is."""
        faults: dict[int, str] = {}
        for step in reversed(steps_of(self.folder)):
            try:
                return step, self.about(step)
            except Damaged as error:
                faults[step] = str(error.__cause__)
        if faults:
            raise none_whole(self.folder, faults)
        return None, None

    def about(self, step: int) -> dict[str, Any]:
        """What the checkpoint of a step says of itself; raises ConfigError for a format this version cannot read."""
        with self._reading(step) as folder:
            about = verified.about(folder)
        if about.get("format") != FORMAT:
            raise ConfigError(
                f"checkpoint {self.folder}/{step} has format version {about.get('format')}, moco_jax {__version__} "
                f"reads version {FORMAT}: use the version that wrote it ({about.get('versions', {}).get('moco_jax')})"
            )
        return about

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step, shaped and placed as `like` (ShapeDtypeStructs with shardings).

        Raises ConfigError naming the leaf where what is stored has another shape or type, or is damaged; where this
        store also writes, on all processes if on one.
        """
        error, state = None, dict[str, Any]()
        try:
            state = self._restored(step, like)
        except ConfigError as raised:
            error = raised
        failed = [] if self._read_only else [i for i, bad in enumerate(parallel.gathered(error is not None)) if bad]
        if error is not None or failed:
            raise error or ConfigError(
                f"checkpoint {self.folder}/{step}: process {failed[0]} cannot use it, and says why"
            )
        return _placed(state, like)

    def restore_part(self, step: int, like: Any, name: str) -> Any:
        """One field of the state, such as "online", shaped and placed as `like`; the rest is not read."""
        return _placed(self._restored(step, {name: like}, [name]), {name: like})[name]

    def fields(self, step: int) -> list[str]:
        """The names of the state's fields at a step, such as "online"."""
        with self._reading(step) as folder:
            return verified.fields(folder)

    def field(self, step: int, name: str) -> Any:
        """One field of the state of a step as nested dicts and lists of numpy arrays, whatever mechanism it is of."""
        with self._reading(step) as folder:
            return verified.read(folder, [name])[name]

    def tree(self, step: int) -> dict[str, Any]:
        """All fields of the state of a step, each as `field` gives it, and read one by one, which takes less memory."""
        return {name: self.field(step, name) for name in self.fields(step)}

    def _restored(self, step: int, like: Any, names: Sequence[str] | None = None) -> dict[str, Any]:
        """{leaf: numpy array} of all fields or of some, which are those of `like`."""
        with self._reading(step) as folder:
            stored = verified.entries(folder)
        self._check(step, like, {k: v for k, v in stored.items() if names is None or k.split("/")[0] in names})
        with self._reading(step) as folder:
            return verified.leaves(verified.read(folder, names or verified.fields(folder)))

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[Path]:
        """The folder of a step; a fault in it, or what else goes wrong, names it."""
        folder = self.folder / str(step)
        if self._writer is not None:
            self._writer.finish()
        try:
            yield folder
        except Exception as error:
            if not folder.exists():
                raise ConfigError(
                    f"{self.folder} holds step {step} no more: its run has trained on meanwhile; try again"
                ) from error
            if not isinstance(error, verified.Fault):
                said = f"{type(error).__name__}: {verified.first_line(error)}"
                raise ConfigError(f"checkpoint {folder} cannot be read now ({said}); try again") from error
            older = max((s for s in steps_of(self.folder) if s < step), default=None)
            then = f"move that folder elsewhere to use step {older}" if older else "put a copy in its place"
            raise Damaged(f"checkpoint {folder} is damaged ({error}): train goes on without it, or {then}") from error

    def _check(self, step: int, like: Any, stored: dict[str, Any]) -> None:
        wanted = verified.leaves(like)
        for name in sorted(stored.keys() ^ wanted.keys()):
            side = "the checkpoint lacks" if name in wanted else "the checkpoint has, and this run lacks,"
            raise ConfigError(f"checkpoint {self.folder}/{step} is of another model: {side} {name}")
        for name, leaf in wanted.items():
            dtype, shape, _ = stored[name]
            if (dtype, tuple(shape)) != (str(leaf.dtype), tuple(leaf.shape)):
                raise ConfigError(
                    f"checkpoint {self.folder}/{step}: {name} is {dtype}{tuple(shape)}, this run needs "
                    f"{leaf.dtype}{tuple(leaf.shape)}; use the config it was trained with"
                )

    def __enter__(self) -> "Store":
        """The store itself; leaving first finishes what is being written.

        Raises OSError, on all processes, where the newest save failed; an error on the way out stays the one raised.
        """
        return self

    def __exit__(self, *error: object) -> None:
        failure = None if self._writer is None else self._writer.close()
        if self._read_only or (error and error[0] is not None):
            return
        if parallel.gathered(failure is not None)[0]:
            raise failure or OSError(f"process 0 could not write the last checkpoint in {self.folder}, and says why")


def _copied(state: Any) -> Any:
    """A replicated state as numpy arrays of nobody else's: on CPU those of the device are the step's to write over."""
    return jax.tree.map(np.array if parallel.on_cpu() else np.asarray, parallel.host(state))


def _placed(found: Mapping[str, np.ndarray], like: Any) -> Any:
    """Leaves by name as arrays where `like` has them; their buffers are nobody else's, so they may be donated."""
    tree = jax.tree_util.tree_map_with_path(lambda path, _: found[verified.leaf_name(path)], like)
    nodes, structure = jax.tree.flatten(like)
    return _copier(structure, tuple(leaf.sharding for leaf in nodes))(tree)


@functools.cache
def _copier(structure: Any, shardings: tuple[Any, ...]) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=structure.unflatten(shardings))


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder against a second run in it; the hold ends with the process, however that ends.

    Raises ConfigError where another process holds it: two runs would delete each other's checkpoints.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is at work in {folder}; wait for it, or use another workdir") from None
        yield


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file's content, or None where there is no file; raises ConfigError for one that is no JSON."""
    if not places.is_remote(path) and not path.exists():
        return None
    try:
        with places.reached(path):
            content = json.loads(path.read_text())
        if not isinstance(content, dict) or not content:
            raise ValueError("no JSON object")
    except FileNotFoundError:
        return None
    except ValueError as error:  # also what is no JSON, or no text
        raise ConfigError(f"{path} is damaged ({error}); delete it, or use another workdir") from None
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    places.write(path, json.dumps(content, indent=2) + "\n")
