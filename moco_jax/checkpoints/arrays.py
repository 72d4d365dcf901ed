"""One checkpoint on disk: a tree of numpy arrays and JSON beside it. The only file that says orbax.

The first process writes; any may read. Nothing here waits for another process, so none hangs because another failed.
"""

import functools
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from moco_jax import places

TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a folder that is being written
FINISHED = "commit_success.txt"  # orbax writes it last, and judges by it where a rename is not atomic
STATE, FILE = "state", "metadata"  # the item that holds the tree; the file of an item that is JSON
FIRST = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="first")


def write(folder: Path, tree: Any, beside: Mapping[str, Any]) -> None:
    """Write a tree of numpy arrays, and JSON by name; the folder appears under its name when all of it is there.

    Raises whatever orbax and the disk do; a folder with TEMPORARY in its name may be left.
    """
    _quiet()
    items: dict[str, Any] = {STATE: ocp.PyTreeCheckpointHandler(multiprocessing_options=FIRST)}
    items |= {name: ocp.JsonCheckpointHandler(multiprocessing_options=FIRST) for name in beside}
    options = ocp.CompositeOptions(multiprocessing_options=FIRST)
    handler = ocp.CompositeCheckpointHandler(composite_options=options, **items)
    args: dict[str, Any] = {name: ocp.args.JsonSave(content) for name, content in beside.items()}
    args[STATE] = ocp.args.PyTreeSave(tree)
    with ocp.Checkpointer(handler, multiprocessing_options=FIRST) as checkpointer:
        checkpointer.save(places.absolute(folder), args=ocp.args.Composite(**args))


def read_json(folder: Path, name: str) -> Any:
    """The JSON of that name beside the tree."""
    return json.loads((folder / name / FILE).read_text())


def fields(folder: Path) -> list[str]:
    """The names at the root of the tree."""
    return sorted(_shapes(_handler(), folder))


def read(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """These fields of the tree, as nested dicts and lists of numpy arrays; the rest is not read."""
    handler = _handler()
    shapes = _shapes(handler, folder)
    stored = {name: shapes[name] for name in names}
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored, is_leaf=_has_shape)
    args = ocp.args.PyTreeRestore(item=stored, restore_args=how, partial_restore=True)
    found: dict[str, Any] = handler.restore(places.absolute(folder / STATE), args=args)
    return found


def _handler() -> Any:
    _quiet()
    return ocp.PyTreeCheckpointHandler()


def _shapes(handler: Any, folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = handler.metadata(places.absolute(folder / STATE)).tree
    return tree


def _ignore_late_work() -> None:
    """Work that fails leaves other work in flight, which would each print that orbax's event loop is closed."""
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
            before(found)

    sys.unraisablehook = hook


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "orbax" not in record.getMessage()


@functools.cache
def _quiet() -> None:
    """Once: have orbax keep to itself what it also raises: it narrates every save, and every piece of a failed one.

    asyncio speaks of those pieces when they are thrown away, after the error. What others log is heard.
    """
    for logger in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(_not_of_orbax)
    _ignore_late_work()


def _has_shape(node: Any) -> bool:
    return hasattr(node, "shape")
