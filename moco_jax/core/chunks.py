"""Queries against a large queue, some rows of it at a time: what `losses.compared` says, without an (N, K) array.

Equal but for rounding, and so are gradients. These are of queries alone, as keys are constants; the way back computes
each chunk's logits once more, so that none are kept.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moco_jax.core.losses import Compared, similarity
from moco_jax.core.queue import own_keys


def compared(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array,
    temperature: float,
    *,
    chunk: int,
    left_out: tuple[jax.Array, jax.Array] | None = None,
) -> Compared:
    """Queries q (N, C) against keys k (N, C) row by row, and against `chunk` rows of the queue (K, C) at a time.

    All are of unit length, and chunk divides K. left_out: (ids (N, V), records (K,)), by which a query's own keys are
    no negatives (`queue.own_keys`).
    """
    positive = jnp.sum(q * k, axis=1) / temperature  # (N,)

    def add(carry: tuple[jax.Array, ...], rows: Any) -> tuple[tuple[jax.Array, ...], None]:
        total, highest, negatives, count = carry
        logits = similarity(q, rows[0]) / temperature  # (N, chunk)
        if left_out is not None:
            logits = jnp.where(own_keys(left_out[0], rows[1]), -jnp.inf, logits)
        seen = lax.stop_gradient(logits)
        kept = seen != -jnp.inf
        before, highest = highest, jnp.maximum(highest, jnp.max(seen, axis=1))
        shrink, top = jnp.exp(peak(before) - peak(highest)), peak(highest)[:, None]
        total = total * shrink + jnp.sum(jnp.exp(logits - top), axis=1)
        negatives += jnp.sum(jnp.where(kept, seen, 0), axis=1)
        count += jnp.sum(kept, axis=1, dtype=seen.dtype)
        return (total, highest, negatives, count), None

    def peak(highest: jax.Array) -> jax.Array:
        """Largest logit so far (N,): finite from the start, as all of a row's negatives may be left out."""
        return jnp.maximum(lax.stop_gradient(positive), highest)

    none = jnp.zeros_like(positive)
    start = jnp.exp(positive - lax.stop_gradient(positive)), none - jnp.inf, none, none  # the positive alone
    rows = (queue,) if left_out is None else (queue, left_out[1])
    in_chunks = tuple(a.reshape(-1, chunk, *a.shape[1:]) for a in rows)
    body = jax.checkpoint(add, prevent_cse=False)  # a scan keeps what it has computed apart already
    (total, highest, negatives, count), _ = lax.scan(body, start, in_chunks)
    return Compared(
        info_nce=jnp.log(total) + peak(highest) - positive,
        hit=positive >= highest,
        positive=positive,
        negative=negatives / jnp.maximum(count, 1),
    )


def own_count(ids: jax.Array, records: jax.Array, chunk: int) -> jax.Array:
    """How many keys were made of a record that a query's row holds: ids (N, V), records (K,) -> (N,) int32."""
    counts = lax.map(lambda some: jnp.sum(own_keys(ids, some), axis=1, dtype=jnp.int32), records.reshape(-1, chunk))
    return jnp.sum(counts, axis=0, dtype=jnp.int32)
