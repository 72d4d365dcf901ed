"""What a benchmark has found: said, and kept where that was asked for."""

import json
import subprocess
from pathlib import Path
from typing import Any


def keep(result: dict[str, Any], path: str | None) -> None:
    """JSON to stdout, and to a file unless `path` is None."""
    text = json.dumps(result, indent=2)
    print(text)
    if path:
        Path(path).write_text(text + "\n")


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
