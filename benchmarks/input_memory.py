"""What a process that makes batches ready holds in memory, minute by minute, over a tree of many files, as JSON.

    python -m benchmarks.input_memory FOLDER --minutes=10 --entries=100000 --output=benchmarks/results/input_memory.json

The files of FOLDER are linked into a tree of so many entries; batches are taken as they come, by the host that cuts
crops and by the one that fills canvases in turn.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output
from moco_jax.cli import flags

NAMED = {
    "minutes": (10.0, "for each of the two"),
    "entries": (100000, "of the tree"),
    "workers": (2, "threads"),
    "batch_size": (256, "images"),
    "output": (None, "file for the JSON, besides stdout"),
}
USAGE = "usage: python -m benchmarks.input_memory FOLDER [--minutes=M] [--entries=N] [--workers=W] [--output=FILE]"


def linked(folder: Path, tree: Path, entries: int) -> None:
    """A tree of `entries` links to the files of a folder, a thousand in each of its folders."""
    files = sorted(p.resolve() for p in folder.rglob("*") if p.is_file())
    for i in range(entries):
        place = tree / f"{i // 1000:04}"
        if i % 1000 == 0:
            place.mkdir()
        (place / f"{i:07}{files[i % len(files)].suffix}").symlink_to(files[i % len(files)])


def megabytes() -> float:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def watched(source: Any, *, minutes: float, batch_size: int, workers: int, canvas: int) -> dict[str, Any]:
    """Take batches for some minutes: images, and megabytes, and the most since the start, at each tenth of it."""
    from moco_jax.data import loader
    from moco_jax.views.recipes import RECIPES

    batches = loader.batches(
        source,
        [view.crop for view in RECIPES["moco_v2"]],
        path="streamed",
        seed=0,
        batch_size=batch_size,
        positions=np.arange(batch_size),
        first_step=0,
        last_step=10**9,
        size=224,
        workers=workers,
        canvas=canvas,
    )
    held: list[int] = []
    peak: list[int] = []
    images, begun = 0, time.monotonic()
    for batch in batches:
        images += len(batch["ids"])
        if time.monotonic() - begun >= (len(held) + 1) * 6 * minutes:
            held.append(round(megabytes()))
            peak.append(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6))
        if len(held) == 10:
            break
    return {"images": images, "megabytes": held, "peak": peak}


def measure(folder: Path, *, minutes: float, entries: int, batch_size: int, workers: int) -> dict[str, Any]:
    """Before, with the tree open, and while batches are made."""
    from moco_jax import config
    from moco_jax.data import opening

    before = round(megabytes())
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "tree"
        tree.mkdir()
        linked(folder, tree, entries)
        source = opening.open_split(config.Data(dataset=None, folder=str(tree), channels=3), "train")
        opened = round(megabytes())
        how: dict[str, Any] = {"minutes": minutes, "batch_size": batch_size, "workers": workers}
        found = {name: watched(source, canvas=canvas, **how) for name, canvas in (("crops", 0), ("canvas of 512", 512))}
    return {"entries": entries, "megabytes before": before, "megabytes with the tree": opened, **how, **found}


def main() -> int:
    """Measure as the flags say."""
    return flags.run(_run, sys.argv[1:])


def _run(argv: list[str]) -> int:
    (folder,), named = flags.parse_without_page(argv, places={"FOLDER": "images"}, named=NAMED, usage=USAGE)
    numbers = {name: named[name] for name in ("entries", "batch_size", "workers")}
    output.keep(measure(Path(folder), minutes=named["minutes"], **numbers), named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
