"""The dictionary of negatives: a ring of keys, newest batch in, oldest out."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import random

from moco_jax.core import axis
from moco_jax.core.losses import unit


class Queue(struct.PyTreeNode):
    """queue (K, C) unit rows; ptr () int32, the next row to write; written (K,) int32, the step that wrote a row."""

    queue: jax.Array
    ptr: jax.Array
    written: jax.Array  # -1: from the start, by no step


class NormalisedQueue(Queue):
    """A queue with log_z (): the constant of the NCE loss over its keys, from so many batches () int32 (`core.nce`)."""

    log_z: jax.Array
    batches: jax.Array


def start(key: jax.Array, size: int, features: int, dtype: jnp.dtype) -> Queue:
    """K random unit rows, as the original starts: (size, features)."""
    return Queue(
        queue=unit(random.normal(key, (size, features), dtype)),  # (K, C)
        ptr=jnp.zeros((), jnp.int32),
        written=jnp.full((size,), -1, jnp.int32),  # (K,)
    )


def enqueue(memory: Queue, keys: jax.Array, step: jax.Array, *, ok: jax.Array | bool = True) -> Queue:
    """The queue with keys (B, C), in their order, over its B oldest rows; wraps at the end, B need not divide K.

    Where not ok () it stays as it is. Raises ValueError where B exceeds K: rows of one batch would overwrite one
    another.
    """
    size, count = memory.queue.shape[0], keys.shape[0]
    if count > size:
        raise ValueError(f"{count} keys per step do not fit a queue of {size}; use queue.size of {count} or more")
    rows = (memory.ptr + jnp.arange(count, dtype=jnp.int32)) % size  # (B,)
    keys = jnp.where(ok, keys.astype(memory.queue.dtype), memory.queue[rows])  # of the rows, not of the whole queue
    return memory.replace(
        queue=memory.queue.at[rows].set(keys, unique_indices=True),  # else a GPU may have to write them one by one
        ptr=jnp.where(ok, (memory.ptr + count) % size, memory.ptr),
        written=memory.written.at[rows].set(
            jnp.where(ok, step.astype(jnp.int32), memory.written[rows]), unique_indices=True
        ),
    )


def rows_of(memory: Queue, keys: int, step: jax.Array, n: int) -> jax.Array:
    """What the queue holds of this device's n rows of a step: (B / G, N, C) of its B = `keys` keys, all there yet.

    One block of G rows for each direction, in the order in which they were enqueued.
    """
    size, batch = memory.queue.shape[0], n * axis.size()
    newer = jnp.sum(memory.written > step, dtype=jnp.int32)  # of steps since; one that was held back left none
    first = memory.ptr - newer - keys + jnp.arange(keys // batch, dtype=jnp.int32) * batch  # (B / G,)
    return memory.queue[(first[:, None] + axis.here(n)[None, :]) % size]


def behind(memory: Queue, queue_ids: jax.Array, keys: int, step: jax.Array) -> jax.Array:
    """The record behind each row of the queue at `step`, -1 for rows of the start: (K,) int32.

    queue_ids (N, W), this device's part of what `data.order.queue_ids` says, spread over the rows of the global batch:
    records of the last K keys had every step enqueued its B = `keys`. A step that was held back enqueued none, so that
    keys before it are still there: -1 where they are too old to be among those K.
    """
    size = memory.written.shape[0]
    records = axis.gather(queue_ids).reshape(-1)[:size]  # (K,) the newest key first
    newer = (
        memory.ptr - 1 - jnp.arange(size, dtype=jnp.int32)
    ) % size  # (K,) rows written since, of this step or later
    steps = jnp.clip(step - 1 - memory.written, 0, size)  # (K,) clipped: a product of large numbers would overflow
    age = steps * keys + newer % keys  # (K,) keys since, had every step enqueued
    return jnp.where((memory.written >= 0) & (age < size), records[jnp.minimum(age, size - 1)], -1)


def own_keys(ids: jax.Array, records: jax.Array) -> jax.Array:
    """Which keys were made of a record that a query's row holds: ids (N, V), records (K,) -> (N, K) bool."""
    return jnp.any(ids[:, :, None] == records[None, None, :], axis=1)  # (N, K)
