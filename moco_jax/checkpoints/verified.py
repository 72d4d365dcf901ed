"""One checkpoint, compared on reading with the digests that were saved with it."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from moco_jax.checkpoints import arrays, digests

ABOUT, DIGESTS = "about", "digests"  # the JSON of a checkpoint
# In what orbax says where it may read another time; and the packages whose errors are those of a connection.
PASSING = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")
CONNECTIONS = ("gcsfs", "aiohttp", "google", "requests", "urllib3")
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # of a disk that answers


class Fault(Exception):
    """Something in a checkpoint is not what was saved; the text says what."""


def write(folder: Path, state: Any, about: Mapping[str, Any]) -> None:
    """Write a state of numpy arrays, its description, and the digests of both; raises whatever the disk does."""
    arrays.write(folder, state, {ABOUT: about, DIGESTS: digests.of(leaves(state), about)})


def entries(folder: Path) -> dict[str, Any]:
    """{leaf: [dtype, shape, digest]} as saved; raises Fault."""
    with _faults("its digests"):
        return digests.checked(arrays.read_json(folder, DIGESTS))["leaves"]


def about(folder: Path) -> dict[str, Any]:
    """What the checkpoint says of itself; raises Fault."""
    with _faults("its digests"):
        known = digests.checked(arrays.read_json(folder, DIGESTS))
    with _faults("its description"):
        found: dict[str, Any] = arrays.read_json(folder, ABOUT)
    if digests.of_json(found) != known["about"]:
        raise Fault("its description is not what was saved")
    return found


def fields(folder: Path) -> list[str]:
    """The names of the state's fields, such as "online"; raises Fault."""
    with _faults("its state"):
        return arrays.fields(folder)


def read(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """These fields, as nested dicts and lists of numpy arrays; raises Fault, naming the first leaf that differs."""
    known = {n: entry for n, entry in entries(folder).items() if n.split("/")[0] in names}
    with _faults("its state"):
        tree = arrays.read(folder, names)
    found = leaves(tree)
    for name in sorted(found.keys() ^ known.keys()):
        raise Fault(f"its state {'lacks' if name in known else 'has, and was not saved with,'} leaf {name}")
    for name, entry in known.items():
        if digests.entry(found[name]) != entry:
            raise Fault(f"leaf {name} is not what was saved")
    return tree


def check(folder: Path) -> None:
    """Read all of a checkpoint, a field at a time; raises Fault."""
    about(folder)
    known, names = entries(folder), fields(folder)
    for name in sorted({leaf.split("/")[0] for leaf in known} - set(names)):
        raise Fault(f"its state lacks {name}")
    for name in names:
        read(folder, [name])


@contextlib.contextmanager
def _faults(item: str) -> Iterator[None]:
    """What cannot be read is a fault, named: orbax names leaves, bytes or nothing. What may pass stays as it is."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if any(word in str(error) for word in PASSING) or type(error).__module__.split(".")[0] in CONNECTIONS:
            raise
        if isinstance(error, OSError) and not isinstance(error, ABSENT):  # a disk, rights, gcsfs of what is forbidden
            raise
        raise Fault(f"{item} cannot be read: {type(error).__name__}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The beginning of what an error says."""
    return (str(error).strip().splitlines() or [""])[0][:200]


def leaves(tree: Any) -> dict[str, Any]:
    """{"online/params/...": leaf}: names that do not depend on whether a node is a dict or a dataclass."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def leaf_name(path: Sequence[Any]) -> str:
    """The name of a leaf from its path in a tree."""
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", None)))) for p in path)
