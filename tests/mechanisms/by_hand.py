"""What the oracles of the mechanisms share: leaves alone, no control flow; a seed that is not the default."""

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax import views
from moco_jax.core import randomness, shuffle
from tests import tiny

SEED, STEP, G, T, DECAY = 5, 3, 16, 0.2, 1e-4
STORED = tiny.images(2, np.float32)  # floats: a crop of integers is rounded, and a tie would fall either way
IDS = tiny.ids(STEP, G)[:, ::1].copy()
IDS[:, 1] = IDS[::-1, 0]  # the two views of a row come from different records, so that they cannot be exchanged
ARGUMENTS = {"low": 0.0, "high": 1.0, "mean": (0.5,) * 2, "std": (0.25,) * 2, "dtype": jnp.float64}


def noisy(tree, seed, scale=0.3):
    """Every leaf moved by its own noise; variances stay positive."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return structure.unflatten([a + scale * np.abs(rng.normal(size=a.shape)).astype(a.dtype) for a in leaves])


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def seen():
    """The augmented views (G, S, S, C) of the batch of STEP, each image with the draws of its own row."""
    made = views.make(tiny.LIGHT, size=tiny.SIZE, **ARGUMENTS)
    position = jnp.arange(G, dtype=jnp.int32)
    batch, data = {"ids": jnp.asarray(IDS)}, {"images": jnp.asarray(STORED)}
    raw = jax.jit(made.raw)(batch, data, position, randomness.key(SEED, STEP, 3))
    augment = jax.jit(made.augment, static_argnums=3)
    return [augment(raw[v], position, randomness.key(SEED, STEP, 4), v) for v in (0, 1)]


def order(direction, block):
    """The permutation (G,) in which keys are encoded."""
    return np.asarray(shuffle.permutation(jax.random.fold_in(randomness.key(SEED, STEP, 2), direction), G, block))


def sgd(params, buffers, gradient):
    """(params, buffers) after a step at STEP: a cosine over five epochs of two steps, from 0.3."""
    rate = 0.3 * 0.5 * (1 + np.cos(np.pi * (STEP // 2) / 5))
    buffers = jax.tree.map(lambda b, g, w: 0.9 * b + g + DECAY * w, buffers, gradient, params)
    return jax.tree.map(lambda w, b: w - rate * b, params, buffers), buffers


def buffers_of(state):
    (found,) = [s.trace for s in state.optimizer if hasattr(s, "trace")]
    return found


def stepped(mechanism, state, **batch):
    """(state, metrics) after the shipped step on one device."""
    batch = {"ids": IDS, **batch}
    mapped = jax.jit(jax.vmap(mechanism.step, axis_name="batch", in_axes=(None, 0, None)))
    out = mapped(state, jax.tree.map(lambda a: a[None], batch), {"images": jnp.asarray(STORED)})
    return jax.tree.map(lambda a: np.asarray(a[0]), out)
