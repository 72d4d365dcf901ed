"""Features of a whole data set, from evaluation views."""

from collections.abc import Callable

import numpy as np

from moco_jax.data import loader
from moco_jax.data.sources import Source
from moco_jax.evaluation.encoder import FrozenEncoder

FEATURES = ("backbone", "head")  # pooled, and what the loss compares


def extract(
    encoder: FrozenEncoder,
    source: Source,
    *,
    batch_size: int,
    workers: int,
    done: Callable[[int], object] | None = None,
) -> dict[str, np.ndarray]:
    """Features of every image in order: {"backbone": (M, D), "head": (M, C)}; padding is cut off, no image dropped.

    `workers` threads decode; `done(n)` hears of every n images that are encoded.
    """
    parts: list[dict[str, np.ndarray]] = []
    how = encoder.preprocessing
    views = loader.centered(source, how.view, batch_size=batch_size, workers=workers)
    for rows, real in views:
        parts.append({name: f[:real] for name, f in encoder.features(rows).items()})
        if done is not None:
            done(real)
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
