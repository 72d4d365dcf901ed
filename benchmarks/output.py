"""What a benchmark has found: said, and kept where that was asked for."""

import json
from pathlib import Path
from typing import Any


def keep(result: dict[str, Any], path: str | None) -> None:
    """JSON to stdout, and to a file unless `path` is None."""
    text = json.dumps(result, indent=2)
    print(text)
    if path:
        Path(path).write_text(text + "\n")
