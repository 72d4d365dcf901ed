"""Features of a whole data set, from evaluation views."""

from collections.abc import Iterator

import numpy as np

from moco_jax.data import crops, sources
from moco_jax.data.sources import Source
from moco_jax.evaluation.encoder import FrozenEncoder


def views_of(source: Source, *, size: int, resize: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Centre views of every image in order, (batch_size, S, S, C) and how many rows are real: the tail is padded."""
    for start in range(0, len(source), batch_size):
        records = range(start, min(start + batch_size, len(source)))
        rows = [crops.center(sources.read(source, i), resize=resize, size=size) for i in records]
        real = len(rows)
        rows += [np.zeros_like(rows[0])] * (batch_size - real)
        yield np.stack(rows), real


def extract(encoder: FrozenEncoder, source: Source, *, resize: int, batch_size: int) -> dict[str, np.ndarray]:
    """Features of every image in order: {"backbone": (M, D), "head": (M, C)}; padding is cut off, no image dropped."""
    size = encoder.view_shape[0]
    parts: list[dict[str, np.ndarray]] = []
    for rows, real in views_of(source, size=size, resize=resize, batch_size=batch_size):
        parts.append({name: f[:real] for name, f in encoder.features(rows).items()})
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
