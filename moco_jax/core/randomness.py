"""Every random draw is a function of (seed, step, purpose), then of the position in the global batch and the view.

Nothing random is ever stored, so a resumed run draws what the uninterrupted one would have drawn, and no draw depends
on how many devices share the batch.
"""

import jax
from jax import random

# Purposes; append only: a new number changes no old draw.
INIT, QUEUE, SHUFFLE, CROP, AUGMENT, BATCHES, RESHUFFLE, CLASSIFIER, BANK, NEGATIVES = range(10)


def key(seed: int | jax.Array, step: jax.Array | int, purpose: int) -> jax.Array:
    """The typed key of one purpose at one step. The same on every device: fold in positions, never a device."""
    return random.fold_in(random.fold_in(random.key(seed), step), purpose)
