"""The memory bank: a feature of every training image, as it was when the image was last seen."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import random

from moco_jax.core import axis
from moco_jax.core.losses import unit


class Bank(struct.PyTreeNode):
    """bank (records, C), written (records,) int32: the step that last wrote a row; log_z () of the NCE loss.

    batches () int32: from how many batches log_z is.
    """

    bank: jax.Array
    written: jax.Array  # -1: from the start, by no step
    log_z: jax.Array
    batches: jax.Array


def start(key: jax.Array, records: int, features: int, dtype: jnp.dtype) -> Bank:
    """Uniform in a cube, of unit length on average, as the published code starts: (records, features)."""
    side = (3 / features) ** 0.5
    return Bank(
        bank=random.uniform(key, (records, features), jnp.float32, -side, side).astype(dtype),  # (records, C)
        written=jnp.full((records,), -1, jnp.int32),  # (records,)
        log_z=jnp.zeros((), jnp.promote_types(dtype, jnp.float32)),
        batches=jnp.zeros((), jnp.int32),
    )


def drawn(key: jax.Array, positions: jax.Array, ids: jax.Array, count: int, records: int) -> jax.Array:
    """For each row `count` records other than ids (N,), uniform and with replacement: (N, K) int32.

    A row's draw is a function of the key and its position in the global batch.
    """

    def one(position: jax.Array, own: jax.Array) -> jax.Array:
        others = random.randint(random.fold_in(key, position), (count,), 0, records - 1, jnp.int32)
        return others + (others >= own)

    return jax.vmap(one)(positions, ids)  # (N, K)


def update(
    memory: Bank, ids: jax.Array, features: jax.Array, momentum: float, step: jax.Array, *, ok: jax.Array | bool = True
) -> Bank:
    """The bank with momentum * row + (1 - momentum) * feature, scaled to unit length, in the rows of seen records.

    ids (N,), features (G, C): rows of this device and features of all. A record comes once in a batch. Where not ok ()
    the bank stays as it is.
    """
    ids = axis.gather(ids)  # (G,)
    rows = memory.bank[ids]  # (G, C)
    mixed = unit(momentum * rows.astype(features.dtype) + (1 - momentum) * features)
    return memory.replace(
        bank=memory.bank.at[ids].set(jnp.where(ok, mixed.astype(rows.dtype), rows)),  # of the rows, not of the bank
        written=memory.written.at[ids].set(jnp.where(ok, step.astype(jnp.int32), memory.written[ids])),
    )
