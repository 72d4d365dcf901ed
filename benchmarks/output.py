"""What a benchmark has found: said, and kept where that was asked for."""

import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from moco_jax.config import ConfigError


def keep(result: dict[str, Any], path: str | None) -> None:
    """JSON to stdout, and to a file unless `path` is None."""
    text = json.dumps(result, indent=2)
    print(text)
    if path:
        Path(path).write_text(text + "\n")


def check(path: str | None) -> None:
    """Raises ConfigError where a result could not be kept at `path`: asked before anything is measured."""
    if path and not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--output={path}: there is no such folder")


def versions(*packages: str) -> dict[str, str]:
    """Those of the packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """What `git describe --always --dirty` says of the code that is measured; None outside of a clone."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()
