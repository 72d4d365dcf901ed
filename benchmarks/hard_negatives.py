"""What a temperature does: how much of the gradient falls on the hardest negatives, and how many of those are alike.

InfoNCE pushes a query from negative j by its softmax weight among the negatives, exp(s_j / T) / sum. A small T puts the
weight on the nearest; where labels exist, these are often images of the query's own class (false negatives).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax.config import Config

HARDEST = 0.01  # share of the negatives
BATCHES = 8  # looked at


def of(cosines: np.ndarray, alike: np.ndarray, temperature: float) -> tuple[float, float]:
    """(share of the weight on the hardest negatives, share of that on the query's class), means over queries.

    cosines (N, K) with the negatives, minus infinity: none; alike (N, K) bool: of the query's class.
    """
    weight = np.exp((cosines - cosines.max(1, keepdims=True)) / temperature)
    weight /= weight.sum(1, keepdims=True)
    count = max(round(HARDEST * cosines.shape[1]), 1)
    hardest = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    top, same = np.take_along_axis(weight, hardest, 1), np.take_along_axis(alike, hardest, 1)
    return float(top.sum(1).mean()), float(((top * same).sum(1) / top.sum(1)).mean())


def compared(
    similar: np.ndarray, ids: np.ndarray, records: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(cosines, alike) for `of`: similarities (N, K) of queries of records ids (N, V) with keys of records (K,).

    Without old keys of a query's own image: a new epoch meets more of them in the old one's queue than training did.
    """
    own = ids[:, :1] == records[None, :]  # (N, K)
    alike = (labels[ids[:, :1]] == labels[records][None, :]) & (records >= 0)[None, :] & ~own
    return np.where(own, -np.inf, similar), alike


def shares(config: Config, workdir: Path, temperatures: Sequence[float]) -> dict[str, Any]:
    """{temperature: [share of the hardest, of these of the query's class]} of a finished run with a queue.

    By the step's own logits on the batches that would come next. "trained" is the run's own temperature.
    """
    import jax

    from moco_jax import assembly, dictionary, parallel
    from moco_jax.checkpoints.store import Store
    from moco_jax.core import axis, queue

    parts = assembly.assemble(config)
    labels = np.asarray(parts.source.labels())
    with Store(workdir / "checkpoints", read_only=True) as store:
        step = store.latest() or 0
        state = store.restore(step, parallel.abstract(parts.mechanism.init))
    data = parallel.put_data({"images": np.stack([parts.source[i] for i in range(len(parts.source))])})
    assert config.moco is not None

    def forward(batch: Any) -> tuple[jax.Array, jax.Array]:
        records = queue.behind(state.memory, batch["queue_ids"], dictionary.keys_per_step(config), state.step)
        return parts.mechanism.contrast(state, batch, data).logits[0], records

    mapped = jax.jit(jax.vmap(forward, axis_name=axis.AXIS))
    cosines, alike, behind = [], [], None
    for batch in assembly.batches_of(parts)(first_step=step, last_step=step + BATCHES):
        behind = batch["queue_ids"] if behind is None else behind  # the queue stays that of `step`
        logits, records = mapped(jax.tree.map(lambda a: a[None], batch | {"queue_ids": behind}))
        similar = np.asarray(logits[0][:, 1:], np.float64) * config.moco.temperature
        found = compared(similar, batch["ids"], np.asarray(records[0]), labels)
        cosines.append(found[0])
        alike.append(found[1])
    both = np.concatenate(cosines), np.concatenate(alike)
    found: dict[str, Any] = {str(t): of(*both, t) for t in temperatures}
    return found | {"trained": config.moco.temperature, "alike": float(both[1].mean()), "negatives": both[0].shape[1]}
