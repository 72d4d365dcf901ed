"""A run's checkpoints: the whole state and everything needed to continue from it. The only file that says orbax."""

import contextlib
import fcntl
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from moco_jax import __version__
from moco_jax.config import ConfigError
from moco_jax.state import FORMAT

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "tensorflow-datasets")


def describe(config: Mapping[str, Any], objects: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint says of itself: format, resolved config, labels of the objects in use, package versions."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions |= {"moco_jax": __version__, "python": platform.python_version()}
    return {"format": FORMAT, "config": dict(config), "objects": dict(objects), "versions": versions}


class Store:
    """Checkpoints under a folder, newest `keep` kept, written in the background.

    Orbax publishes a step by renaming a finished folder, so that a kill while saving leaves the step before it.
    """

    def __init__(self, folder: Path, *, keep: int = 1, read_only: bool = False):
        """Raises ConfigError where a folder to read does not exist."""
        absl_logging.set_verbosity(absl_logging.ERROR)  # orbax narrates every save
        if read_only and not folder.is_dir():
            raise ConfigError(f"no checkpoints in {folder}: give the folder of a run, the one that train wrote to")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)
        self.folder = folder

    def latest(self) -> int | None:
        """The newest finished step, or None."""
        self._manager.wait_until_finished()  # until then orbax also names a step that is still being written
        return self._manager.latest_step()

    def holds(self, step: int) -> bool:
        """Whether a step is there and finished; a run that goes on removes old ones."""
        return step in self._manager.all_steps()

    def save(self, step: int, state: Any, about: Mapping[str, Any]) -> None:
        """Write a state of global arrays; returns once the device buffers are copied, the rest happens behind."""
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(dict(about)))
        with _written(f"checkpoint {self.folder}/{step}"):
            done = self._manager.save(step, args=args)
        if not done:
            raise RuntimeError(f"checkpoint {step} was not written: {self.folder} already holds one of that step")

    def about(self, step: int) -> dict[str, Any]:
        """What the checkpoint of a step says of itself; raises ConfigError for a format this version cannot read."""
        with self._reading(step):
            about: dict[str, Any] = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))[
                "about"
            ]
        if about.get("format") != FORMAT:
            raise ConfigError(
                f"checkpoint {self.folder}/{step} has format version {about.get('format')}, moco_jax {__version__} "
                f"reads version {FORMAT}: use the version that wrote it ({about.get('versions', {}).get('moco_jax')})"
            )
        return about

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step, shaped and placed as `like` (ShapeDtypeStructs with shardings).

        Raises ConfigError naming the leaf where what is stored has another shape or type: orbax would cast in silence.
        """
        self._check(step, like, self._stored(step))
        return self._restore(step, like, partial=False)

    def restore_part(self, step: int, like: Any, name: str) -> Any:
        """One field of the state, such as "online", shaped and placed as `like`; the rest is not read."""
        wanted = {name: like}
        self._check(step, wanted, {k: v for k, v in self._stored(step).items() if k.startswith(name + "/")})
        return self._restore(step, wanted, partial=True)[name]

    def fields(self, step: int) -> list[str]:
        """The names of the state's fields at a step, such as "online"."""
        with self._reading(step):
            return sorted(self._manager.item_metadata(step)["state"].tree)

    def field(self, step: int, name: str) -> Any:
        """One field of the state of a step as nested dicts and lists of numpy arrays, whatever mechanism it is of."""
        with self._reading(step):
            stored = {name: self._manager.item_metadata(step)["state"].tree[name]}
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored, is_leaf=_has_shape)
            args = ocp.args.PyTreeRestore(item=stored, restore_args=how, partial_restore=True)
            return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"][name]

    def tree(self, step: int) -> dict[str, Any]:
        """All fields of the state of a step, each as `field` gives it, and read one by one, which takes less memory."""
        return {name: self.field(step, name) for name in self.fields(step)}

    def _restore(self, step: int, like: Any, *, partial: bool) -> Any:
        args = ocp.args.PyTreeRestore(
            item=like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=partial
        )
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def _stored(self, step: int) -> dict[str, Any]:
        with self._reading(step):
            return leaves(self._manager.item_metadata(step)["state"].tree)

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Name the folder in whatever orbax raises, which names leaves, bytes or nothing."""
        try:
            yield
        except Exception as error:
            if not (self.folder / str(step)).exists():
                raise ConfigError(
                    f"{self.folder} holds step {step} no more: its run has trained on meanwhile; try again"
                ) from error
            raise ConfigError(
                f"checkpoint {self.folder}/{step} cannot be read ({type(error).__name__}: {_first_line(error)}); where "
                "it is damaged, delete that folder, and the run continues from the one before"
            ) from error

    def _check(self, step: int, like: Any, stored: dict[str, Any]) -> None:
        wanted = leaves(like)
        for name in sorted(stored.keys() ^ wanted.keys()):
            side = "the checkpoint lacks" if name in wanted else "the checkpoint has, and this run lacks,"
            raise ConfigError(f"checkpoint {self.folder}/{step} is of another model: {side} {name}")
        for name, leaf in wanted.items():
            have = stored[name]
            if tuple(have.shape) != tuple(leaf.shape) or have.dtype != leaf.dtype:
                raise ConfigError(
                    f"checkpoint {self.folder}/{step}: {name} is {have.dtype}{tuple(have.shape)}, this run needs "
                    f"{leaf.dtype}{tuple(leaf.shape)}; use the config it was trained with"
                )

    def __enter__(self) -> "Store":
        """The store itself; leaving, also by an error, first finishes what is being written."""
        return self

    def __exit__(self, *_: object) -> None:
        with _written(f"a checkpoint in {self.folder}"):
            self._manager.close()


@contextlib.contextmanager
def _written(what: str) -> Iterator[None]:
    """Orbax reports a full disk late and as many things; here it is an OSError."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{what} could not be written ({_first_line(error)}); those before it are whole") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


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


def _has_shape(node: Any) -> bool:
    return hasattr(node, "shape")


def leaves(tree: Any) -> dict[str, Any]:
    """{"online/params/...": leaf}: names that do not depend on whether a node is a dict or a dataclass."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        parts = (getattr(p, "key", getattr(p, "name", getattr(p, "idx", None))) for p in path)
        named["/".join(map(str, parts))] = leaf
    return named


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file's content, or None where there is no file; raises ConfigError for one that is no JSON."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or not content:
            raise ValueError("no JSON object")
    except ValueError as error:  # also what is no JSON, or no text
        raise ConfigError(f"{path} is damaged ({error}); delete it, or use another workdir") from None
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)
