"""The evaluations in a run's folder, as their commands left them: for a report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moco_jax.checkpoints.store import read_json
from moco_jax.config import ConfigError
from moco_jax.evaluation import finetune, kept, neighbours, probe
from moco_jax.reports import table

TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "linear": probe.text,
    "finetune": finetune.text,
    "knn": neighbours.text,
}


class Found(NamedTuple):
    """One evaluation: the name of its folder, and its numbers as text or as a table."""

    name: str
    text: str  # "" where there is a table
    table: table.Table | None
    confusion: np.ndarray | None  # (classes, classes) counts of test images, true by predicted
    classes: list[str]


def of(run: Path) -> tuple[list[Found], dict[str, str]]:
    """The finished evaluations of a run's folder by name, and {name: why} of those that cannot be shown."""
    out, missing = [], {}
    for folder in sorted(p for p in run.iterdir() if p.is_dir()):
        try:
            stored, tabled = read_json(folder / "result.json"), read_json(folder / "table.json")
        except ConfigError as error:
            missing[folder.name] = str(error)
            continue
        if (stored and stored.get("format") != kept.FORMAT) or (tabled and tabled.get("format") != table.FORMAT):
            missing[folder.name] = "it was written in another form, by another version; evaluate again"
            continue
        try:
            if stored is not None:
                words = TEXTS[stored["about"]["settings"]["protocol"]](stored)
                out.append(Found(folder.name, words, None, *_confusion(stored)))
            if tabled is not None:
                out.append(Found(folder.name, "", table.from_json(tabled), None, []))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # edited by hand
            missing[folder.name] = f"it is damaged ({type(error).__name__}: {error}); evaluate again"
    return out, missing


def _confusion(stored: dict[str, Any]) -> tuple[np.ndarray | None, list[str]]:
    """Counts and class names of the trained encoder's headline, or of all draws together; kNN keeps none."""
    if "draws" in stored:
        matrices = [draw["last"]["confusion"] for draw in stored["draws"]]
    elif "rows" in stored:
        matrices = [stored["rows"]["trained encoder"]["last"]["confusion"]]
    else:
        return None, []
    if any(matrix is None for matrix in matrices):
        return None, []
    return np.sum(matrices, axis=0), stored["classes"]
