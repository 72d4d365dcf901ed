"""A host's part of some global batches: python -m tests.data.one_host FOLDER HOST HOSTS WORKERS CANVAS.

Prints a digest of every row of every step: its ids and the pixels of its views.
"""

import hashlib
import json
import sys

import numpy as np

from moco_jax.config import Data
from moco_jax.data import loader, opening, replacing
from moco_jax.views.recipes import RECIPES

BATCH, FIRST, LAST = 8, 1, 6  # of 20 images: over two epochs' ends


def rows(folder: str, host: int, hosts: int, workers: int, canvas: int) -> list[list[str]]:
    """Digests by step and row."""
    split = opening.open_split(Data(dataset=None, folder=folder, channels=3), "train")
    positions = np.arange(BATCH).reshape(hosts, -1)[host]
    batches = loader.batches(
        replacing.Replacing(split, 0.2),
        [view.crop for view in RECIPES["moco_v2"]],
        path="streamed",
        seed=3,
        batch_size=BATCH,
        positions=positions,
        first_step=FIRST,
        last_step=LAST,
        size=16,
        workers=workers,
        canvas=canvas,
    )
    return [[_digest(batch, row) for row in range(len(positions))] for batch in batches]


def _digest(batch: dict, row: int) -> str:
    digest = hashlib.sha256(batch["ids"][row].tobytes())
    if "raw" in batch:
        parts = [view[row] for view in batch["raw"]]
    else:  # what the boxes cover; nobody looks at the rest of a canvas
        digest.update(batch["boxes"][row].tobytes())
        parts = [batch["canvas"][0][row, t : t + h, x : x + w] for t, x, h, w in batch["boxes"][row].tolist()]
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(json.dumps(rows(sys.argv[1], *map(int, sys.argv[2:]))))
