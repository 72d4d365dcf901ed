"""Config pages: Python files with a `get_config()`, shipped under `configs/` or the user's own."""

import difflib
import inspect
import re
import runpy
import traceback
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moco_jax import config, protocols
from moco_jax.config import ConfigError


def folder() -> Path:
    """Where the shipped pages are: in the installed package, or beside it in a clone."""
    package = Path(__file__).resolve().parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Names of the shipped pages."""
    return sorted(p.stem for p in folder().glob("*.py"))


def find(name: str) -> Path:
    """The file of a page, given by path or by the name of a shipped one; raises ConfigError listing those."""
    for path in (Path(name), folder() / f"{name}.py"):
        if path.is_file():
            return path
    near = difflib.get_close_matches(Path(name).stem, names(), 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"no config page {name!r}{hint} (a path, or the name of a shipped page: --help lists them)")


def load(name: str) -> ConfigDict:
    """The ConfigDict of a page, by path or name: a page may build on another.

    Raises ConfigError naming the line of a page that cannot be run, such as one that asks for a key that there is not.
    """
    path = find(name)
    if path.suffix == ".json":
        raise ConfigError(
            f"{path} is no config page, which is a .py file with get_config(): build one on page() (README)"
        )
    try:
        page = runpy.run_path(str(path)).get("get_config", dict)()
    except ConfigError:  # of a page that this one builds on
        raise
    except Exception as error:  # whatever a user's Python may raise
        raise ConfigError(f"{path}, {_told(error, path)}") from None
    if not isinstance(page, ConfigDict) or not page:
        raise ConfigError(
            f"{path} is no config page: it needs a function get_config() that returns what page() gave it, edited"
        )
    return page


def _told(error: Exception, path: Path) -> str:
    """The line of a page at which an error came, and what it was, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), getattr(error, "lineno", None) or "?")
    text = " ".join(str(error).split())
    near = re.search(r'Did you mean "(.+?)" instead of "(.+?)"', text)  # ml_collections lists all others, as objects
    key = near or re.search(r'Key "(.+?)" does not exist', text)
    if key:
        text = f"{near[2]!r}; did you mean {near[1]!r}?" if near else repr(key[1])
    lacks = key or isinstance(error, AttributeError)
    return f"line {line}: {'no such key or section' if lacks else type(error).__name__}: {text}"


def explained(page: ConfigDict) -> Iterator[tuple[str, Any, str]]:
    """Every key of a page in the schema's order, its value, and what the comment beside it in the schema says."""
    comments: dict[tuple[str, str], str] = {}
    section = ""
    trains = "mechanism" in page
    for line in inspect.getsource(config if trains else protocols).splitlines():
        if match := re.match(r"class (\w+)", line):
            section = match[1]
        elif match := re.match(r"    (\w+): .*?(?:#\s*(.*))?$", line):
            comments[section, match[1]] = match[2] or ""
    kinds = {} if trains else typing.get_type_hints(protocols.PROTOCOLS[page["protocol"]])
    root = "Config" if trains else protocols.PROTOCOLS[page["protocol"]].__name__
    for key in (name for kind, name in comments if kind == root and name in page):
        if isinstance(page[key], ConfigDict):
            kind = (config.section_of(key) if trains else kinds[key]).__name__
            names = (name for owner, name in comments if owner == kind)
            yield from ((f"{key}.{name}", page[key][name], comments[kind, name]) for name in names)
        else:
            yield key, page[key], comments[root, key]
