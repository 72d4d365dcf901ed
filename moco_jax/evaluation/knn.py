"""Weighted k-nearest-neighbour classification on the device (Wu et al., 2018), the monitor of MoCo's notebook."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moco_jax.config import ConfigError
from moco_jax.core.losses import unit


def classify(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    *,
    classes: int,
    k: int,
    temperature: float,
    chunk: int = 256,
) -> np.ndarray:
    """Predicted class of every query (Q, D) from a labelled bank (M, D): (Q,) int32.

    Features are L2-normalised; each of the k nearest by cosine votes for its class with weight exp(similarity / T).
    Exactly k vote: among neighbours of equal similarity those first in the bank, and among classes of equal votes the
    lowest label wins. (scikit-learn has the same rule for classes and none for neighbours: it partitions, so which of
    several equal ones votes is left open.) Equal is equal after rounding: similarities and votes are computed in the
    features' dtype, at least float32. Queries go in chunks; the last one is padded, never dropped. Raises ConfigError
    where the bank holds fewer than k.
    """
    if k > len(bank):
        raise ConfigError(
            f"eval.k {k} neighbours, but the bank holds {len(bank)} images; use eval.k={len(bank)} or less"
        )
    keys, labels = unit(jnp.asarray(bank)), jnp.asarray(bank_labels, jnp.int32)
    predicted = []
    for start in range(0, len(queries), chunk):
        rows = queries[start : start + chunk]
        padded = np.pad(rows, ((0, chunk - len(rows)), (0, 0)))
        votes = _vote(keys, labels, jnp.asarray(padded), classes=classes, k=k, temperature=temperature)
        predicted.append(np.asarray(votes)[: len(rows)])
    return np.concatenate(predicted)


@partial(jax.jit, static_argnames=("classes", "k", "temperature"))
def _vote(
    keys: jax.Array, labels: jax.Array, rows: jax.Array, *, classes: int, k: int, temperature: float
) -> jax.Array:
    similarity = jnp.einsum("qd,md->qm", unit(rows), keys, precision=lax.Precision.HIGHEST)  # (Q, M)
    nearest, index = lax.top_k(similarity, k)  # (Q, k)
    # Relative to the nearest: the same order of classes, and exp cannot overflow at small T.
    weights = jnp.exp((nearest - nearest[:, :1]) / temperature)
    chosen = jax.nn.one_hot(labels[index], classes, dtype=weights.dtype)  # (Q, k, classes)
    votes = jnp.einsum("qk,qkc->qc", weights, chosen, precision=lax.Precision.HIGHEST)
    return jnp.argmax(votes, axis=1)
