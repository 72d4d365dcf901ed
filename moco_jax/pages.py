"""Config pages: Python files with a `get_config()`, shipped under `configs/` or the user's own."""

import difflib
import runpy
from pathlib import Path

from ml_collections import ConfigDict

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
    raise ConfigError(f"no config page {name!r}{hint} (a path, or one of: {', '.join(names())})")


def load(name: str) -> ConfigDict:
    """The ConfigDict of a page, by path or name: a page may build on another."""
    page: ConfigDict = runpy.run_path(str(find(name)))["get_config"]()
    return page
