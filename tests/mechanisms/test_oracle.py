"""One step of MoCo written out by hand, from the papers' words, against the shipped step: every leaf of the state.

The oracle shares the leaves (encoder, views, the draw of a permutation) but none of the step's control flow. The state
it starts from has nothing equal that could hide a mix-up: target and online parameters, both batch statistics, momentum
buffers and the age of the queue all differ, and the learning rate changes after this very step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import views
from moco_jax.config import Moco
from moco_jax.config import Queue as QueueSection
from moco_jax.core import randomness, shuffle
from moco_jax.core.queue import Queue
from moco_jax.state import Network
from tests import tiny

STEP, G, K, M, T, DECAY = 3, 16, 40, 0.9, 0.2, 1e-4
STORED = tiny.images(2, np.float32)  # floats: a crop of integers is rounded, and a tie would fall either way
IDS = tiny.ids(STEP, G)[:, ::1].copy()
BEHIND = np.random.default_rng(9).integers(0, 20, (G, 3)).astype(np.int32)  # records behind the queue, by three a row
IDS[:, 1] = IDS[::-1, 0]  # the two views of a row come from different records, so that they cannot be exchanged


def noisy(tree, seed, scale=0.3):
    """Every leaf moved by its own noise; variances stay positive."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return structure.unflatten([a + scale * np.abs(rng.normal(size=a.shape)).astype(a.dtype) for a in leaves])


def start(mechanism):
    """A state in which nothing that could be confused is equal; the queue wraps inside the next batch."""
    state = jax.tree.map(np.asarray, jax.jit(mechanism.init)())
    rows = noisy(np.zeros((K, 8)), 5, scale=1.0) - 0.5
    return state.replace(
        step=np.int32(STEP),
        online=Network(noisy(state.online.params, 1), noisy(state.online.batch_stats, 2)),
        target=Network(noisy(state.target.params, 3), noisy(state.target.batch_stats, 4)),
        optimizer=noisy(state.optimizer, 6),
        memory=Queue(
            rows / np.linalg.norm(rows, axis=1, keepdims=True), np.int32(34), np.arange(K, dtype=np.int32) % 4 - 1
        ),
    )


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def by_hand(c, encoder, made, state):
    """(new state's leaves by name, loss, pretext accuracy) of one step."""
    position = jnp.arange(G, dtype=jnp.int32)
    batch, data, key = {"ids": jnp.asarray(IDS)}, {"images": jnp.asarray(STORED)}, randomness.key(0, STEP, 4)
    raw = jax.jit(made.raw)(batch, data, position, randomness.key(0, STEP, 3))
    augment = jax.jit(made.augment, static_argnums=3)
    seen = [augment(raw[v], position, key, v) for v in (0, 1)]  # each image with the draws of its own row
    target = jax.tree.map(lambda t, o: M * t + (1 - M) * o, state.target.params, state.online.params)
    target_stats, directions, keys = state.target.batch_stats, [(0, 1), (1, 0)][: 1 + c.moco.symmetric], []
    for d, (_, view) in enumerate(directions):
        draw = jax.random.fold_in(randomness.key(0, STEP, 2), d)
        p = np.asarray(shuffle.permutation(draw, G, c.shuffle.block))
        z, target_stats = jax.jit(encoder.project)(
            target, target_stats, seen[view][p]
        )  # among other images than its query
        k = np.empty((G, 8))
        k[p] = unit(np.asarray(z))
        keys.append(k)

    own = np.zeros((G, K), bool)  # keys that were made of one of the two images of a row
    for row, slot in np.ndindex(G, K):
        own[row, slot] = state.memory.written[slot] >= 0 and BEHIND.reshape(-1)[slot] in IDS[row]

    def loss_of(params):
        stats, losses, hits, negatives = state.online.batch_stats, [], [], []
        for d, (view, _) in enumerate(directions):
            z, stats = encoder.project(params, stats, seen[view])
            q = z / jnp.linalg.norm(z, axis=1, keepdims=True)
            positive, others = (q * keys[d]).sum(1) / T, q @ state.memory.queue.T / T
            kept = np.where(own & c.queue.mask_same_image, 0.0, 1.0)  # those left out have no weight
            losses.append(-jnp.mean(jnp.log(jnp.exp(positive) / (jnp.exp(positive) + (kept * jnp.exp(others)).sum(1)))))
            hits.append(jnp.mean(positive >= jnp.where(kept > 0, others, -9e9).max(1)))
            negatives.append(jnp.mean((kept * others).sum(1) / kept.sum(1)) * T)
        return sum(losses), (stats, [sum(x) / len(x) for x in (hits, negatives)])

    (loss, (online_stats, measures)), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(state.online.params)
    rate = 0.3 * 0.5 * (1 + np.cos(np.pi * (STEP // 2) / 5))  # two steps an epoch, five epochs
    (buffers,) = [s.trace for s in state.optimizer if hasattr(s, "trace")]
    buffers = jax.tree.map(lambda b, g, w: 0.9 * b + g + DECAY * w, buffers, gradient, state.online.params)
    queue, written = state.memory.queue.copy(), state.memory.written.copy()
    new = np.concatenate([keys[1], keys[0]]) if c.moco.symmetric else keys[0]
    for i, k in enumerate(new):
        queue[(34 + i) % K], written[(34 + i) % K] = k, STEP
    expected = {
        "online": Network(jax.tree.map(lambda w, b: w - rate * b, state.online.params, buffers), online_stats),
        "target": Network(target, target_stats),
        "buffers": buffers,
        "memory": Queue(queue, np.int32((34 + len(new)) % K), written),
    }
    return expected, [loss, *measures, own.sum() / G]


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_step_is_what_the_papers_say(symmetric, float64):
    """Target, keys, logits, loss, gradient, SGD, queue: all of the new state, and the step's own metrics.

    Symmetric with a query's own old keys left out; they are counted either way.
    """
    c = dataclasses.replace(tiny.double(tiny.config()), moco=Moco(M, T, symmetric), queue=QueueSection(K, symmetric))
    encoder = tiny.small_encoder(c, 2)
    mechanism = tiny.mechanism(c, STORED, tiny.LIGHT, encoder=encoder)
    arguments = {"low": 0.0, "high": 1.0, "mean": (0.5,) * 2, "std": (0.25,) * 2, "dtype": jnp.float64}
    state = start(mechanism)
    batch, data = {"ids": IDS[None], "queue_ids": BEHIND[None]}, {"images": jnp.asarray(STORED)}
    mapped = jax.jit(jax.vmap(mechanism.step, axis_name="batch", in_axes=(None, 0, None)))
    after, metrics = jax.tree.map(lambda a: np.asarray(a[0]), mapped(state, batch, data))

    expected, measures = by_hand(c, encoder, views.make(tiny.LIGHT, size=tiny.SIZE, **arguments), state)
    (buffers,) = [s.trace for s in after.optimizer if hasattr(s, "trace")]
    got = {"online": after.online, "target": after.target, "buffers": buffers, "memory": after.memory}
    gap, where = tiny.distance(got, expected)
    assert gap < 1e-5, f"{where}: {gap:.1e}"
    assert int(after.step) == STEP + 1
    names = ("loss", "pretext_accuracy", "negative_similarity", "own_keys")
    np.testing.assert_allclose([metrics[name] for name in names], measures, rtol=1e-5)
    ages = STEP - state.memory.written[state.memory.written >= 0]  # of the negatives that the step used
    np.testing.assert_allclose(
        [metrics["queue_age_mean"], metrics["queue_age_max"]], [ages.mean(), ages.max()], rtol=1e-5
    )
