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

from moco_jax.config import Moco
from moco_jax.config import Queue as QueueSection
from moco_jax.core import nce
from moco_jax.core.queue import NormalisedQueue, Queue
from moco_jax.state import Network
from tests import tiny
from tests.mechanisms.by_hand import IDS, SEED, STEP, STORED, G, T, buffers_of, noisy, order, seen, sgd, stepped, unit

K, M = 40, 0.9
LOG_Z = 7.5  # of the steps before
BEHIND = np.random.default_rng(9).integers(0, 20, (G, 3)).astype(np.int32)  # records of the last keys, by three a row


def start(mechanism, loss, keys):
    """A state in which nothing that could be confused is equal; the queue wraps inside the next batch of `keys`."""
    state = jax.tree.map(np.asarray, jax.jit(mechanism.init)())
    rows = noisy(np.zeros((K, 8)), 5, scale=1.0) - 0.5
    written = np.empty(K, np.int32)
    written[(33 - np.arange(K)) % K] = STEP - 1 - np.arange(K) // keys  # from the newest on
    written[[34, 36]] = -1  # of the start
    memory = Queue(unit(rows), np.int32(34), written)
    if loss == "nce":
        memory = NormalisedQueue(memory.queue, memory.ptr, memory.written, np.asarray(LOG_Z), np.int32(3))
    return state.replace(
        step=np.int32(STEP),
        online=Network(noisy(state.online.params, 1), noisy(state.online.batch_stats, 2)),
        target=Network(noisy(state.target.params, 3), noisy(state.target.batch_stats, 4)),
        optimizer=noisy(state.optimizer, 6),
        memory=memory,
    )


def by_hand(c, encoder, state):
    """(new state's leaves by name, loss, pretext accuracy) of one step."""
    images = seen()
    target = jax.tree.map(lambda t, o: M * t + (1 - M) * o, state.target.params, state.online.params)
    target_stats, directions, keys = state.target.batch_stats, [(0, 1), (1, 0)][: 1 + c.moco.symmetric], []
    for d, (_, view) in enumerate(directions):
        p = order(d, c.shuffle.block)
        # among other images than its query
        z, target_stats = jax.jit(encoder.project)(target, target_stats, images[view][p])
        k = np.empty((G, 8))
        k[p] = unit(np.asarray(z))
        keys.append(k)

    own = np.zeros((G, K), bool)  # keys that were made of one of the two images of a row
    for row, slot in np.ndindex(G, K):
        record = BEHIND.reshape(-1)[(33 - slot) % K]  # the newest key is in row 33
        own[row, slot] = state.memory.written[slot] >= 0 and record in IDS[row]
    kept = np.where(own & c.queue.mask_same_image, 0.0, 1.0)  # those left out have no weight

    def loss_of(params):
        stats, scores, hits, negatives = state.online.batch_stats, [], [], []
        for d, (view, _) in enumerate(directions):
            z, stats = encoder.project(params, stats, images[view])
            q = z / jnp.linalg.norm(z, axis=1, keepdims=True)
            positive, others = (q * keys[d]).sum(1) / T, q @ state.memory.queue.T / T
            scores.append((positive, others))
            hits.append(jnp.mean(positive >= jnp.where(kept > 0, others, -9e9).max(1)))
            negatives.append(jnp.mean((kept * others).sum(1) / kept.sum(1)) * T)
        loss, z = nce(scores) if c.moco.loss == "nce" else (infonce(scores), None)
        return loss, (stats, [sum(x) / len(x) for x in (hits, negatives)], z)

    def infonce(scores):
        return sum(-jnp.mean(jnp.log(jnp.exp(p) / (jnp.exp(p) + (kept * jnp.exp(o)).sum(1)))) for p, o in scores)

    def nce(scores):
        """Z is the mean over four batches, of which this is the last: N times that of exp over the negatives."""
        now = tiny.RECORDS * sum((kept * jnp.exp(o)).sum() for _, o in scores) / (len(scores) * kept.sum())
        z = jax.lax.stop_gradient((3 * jnp.exp(LOG_Z) + now) / 4)
        noise = K / tiny.RECORDS  # times the probability of each
        total = 0.0
        for p, o in scores:
            p, o = jnp.exp(p) / z, jnp.exp(o) / z
            total += -jnp.mean(jnp.log(p / (p + noise)) + (kept * jnp.log(noise / (o + noise))).sum(1))
        return total, jnp.log(z)

    value_and_grad = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, (online_stats, measures, z)), gradient = value_and_grad(state.online.params)
    params, buffers = sgd(state.online.params, buffers_of(state), gradient)
    queue, written = state.memory.queue.copy(), state.memory.written.copy()
    new = np.concatenate([keys[1], keys[0]]) if c.moco.symmetric else keys[0]
    for i, k in enumerate(new):
        queue[(34 + i) % K], written[(34 + i) % K] = k, STEP
    memory = Queue(queue, np.int32((34 + len(new)) % K), written)
    if z is not None:
        memory = NormalisedQueue(memory.queue, memory.ptr, memory.written, z, np.int32(4))
    expected = {
        "online": Network(params, online_stats),
        "target": Network(target, target_stats),
        "buffers": buffers,
        "memory": memory,
    }
    return expected, [loss, *measures, own.sum() / G]


@pytest.mark.parametrize(("symmetric", "loss"), [(False, "infonce"), (True, "infonce"), (True, "nce")])
def test_a_step_is_what_the_papers_say(symmetric, loss, float64):
    """Target, keys, logits, loss, gradient, SGD, queue: all of the new state, and the step's own metrics.

    Symmetric with a query's own old keys left out; they are counted either way. NCE with the last of the batches over
    which its constant is estimated.
    """
    section = Moco(M, T, symmetric, loss=loss, nce_batches=4)
    c = dataclasses.replace(tiny.double(tiny.config(seed=SEED)), moco=section, queue=QueueSection(K, symmetric))
    encoder = tiny.small_encoder(c, 2)
    mechanism = tiny.mechanism(c, STORED, tiny.LIGHT, encoder=encoder)
    state = start(mechanism, loss, 32 if symmetric else 16)
    after, metrics = stepped(mechanism, state, queue_ids=BEHIND)

    expected, measures = by_hand(c, encoder, state)
    got = {"online": after.online, "target": after.target, "buffers": buffers_of(after), "memory": after.memory}
    gap, where = tiny.distance(got, expected)
    assert gap < 1e-5, f"{where}: {gap:.1e}"
    assert int(after.step) == STEP + 1
    guess = nce.chance(K) if loss == "nce" else np.log(K + 1)
    assert mechanism.chance == pytest.approx((1 + symmetric) * guess)
    names = ("loss", "pretext_accuracy", "negative_similarity", "own_keys")
    np.testing.assert_allclose([metrics[name] for name in names], measures, rtol=1e-5)
    ages = STEP - state.memory.written[state.memory.written >= 0]  # of the negatives that the step used
    np.testing.assert_allclose(
        [metrics["queue_age_mean"], metrics["queue_age_max"]], [ages.mean(), ages.max()], rtol=1e-5
    )
