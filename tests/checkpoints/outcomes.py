"""What a reader makes of a file, in a word: whether it read it, explained what is wrong, or did neither."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from moco_jax.checkpoints import pytorch, reading
from moco_jax.config import ConfigError
from tests.checkpoints import bad_files, foreign

MOST = 400  # characters that somebody reads


def of(path: Path, **options: Any) -> tuple[str, str]:
    """("read", layout), ("explained", message) or ("unexplained", what came instead) of `reading.read`."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("error")
            found = reading.read(path, **options)
    except ConfigError as error:
        text = str(error)
        fine = len(text) - len(str(path)) < MOST - 100 and "\n" not in text and path.name in text and text.isprintable()
        return ("explained" if fine and not said.getvalue() else "unexplained"), text
    except BaseException as error:  # whatever it is, nobody explained it
        return "unexplained", f"{type(error).__name__}: {error}"
    return "read", found.layout


class Tried(NamedTuple):
    """What became of a file."""

    name: str
    outcome: str
    message: str
    executed: bool  # something in it ran


CONTENTS = {
    "code": bad_files.executing,
    "values": lambda _: bad_files.others(),
    "tensors": lambda _: bad_files.tensors(),
    "structures": lambda _: bad_files.structures(),
}


def contents(kind: str, folder: Path, *, legacy: bool) -> Iterator[Tried]:
    """Every content of a kind of CONTENTS, written by torch in one of its formats, and read."""
    marker = folder / "marker"
    for name, content in CONTENTS[kind](marker):
        of_it = of(foreign.save(folder / "case.pth.tar", content, legacy=legacy))
        yield Tried(name, *of_it, marker.exists())
        marker.unlink(missing_ok=True)


def files(folder: Path) -> Iterator[Tried]:
    """Every file that is none of PyTorch's, and one of it cut off, read."""
    for name, path in bad_files.no_weights(folder):
        yield Tried(name, *of(path), False)
    for legacy in (False, True):
        whole = foreign.save(folder / f"{'legacy' if legacy else 'zip'}.pth.tar", bad_files.good(), legacy=legacy)
        for name, path in bad_files.cut(whole):
            yield Tried(f"{name}, {whole.name}", *of(path), False)


def flips(path: Path, bits: list[int]) -> Iterator[tuple[int, str, str]]:
    """(bit, outcome, message) of a file with each of its bits changed; "read" is "equal" or "changed", by content."""
    whole = _bytes(pytorch.read(path))
    for bit, changed in zip(bits, bad_files.flipped(path, bits), strict=True):
        outcome, message = of(changed)
        if outcome == "read":
            outcome = "equal" if _bytes(pytorch.read(changed)) == whole else "changed"
        yield bit, outcome, message


def _bytes(content: Any) -> Any:
    """Something to compare, NaN or not: every leaf by its place, type and bits."""
    leaves = jax.tree_util.tree_leaves_with_path(content)
    return [
        (str(at), repr(v) if not isinstance(v, np.ndarray) else (v.dtype, v.shape, v.tobytes())) for at, v in leaves
    ]
