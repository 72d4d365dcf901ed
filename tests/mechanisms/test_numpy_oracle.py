"""End to end and the memory bank in numpy alone: forward, gradient by formula, SGD, and what is stored.

The encoder is one matrix, so that nothing is left to JAX: z = W x of whole images. Where `by_hand` shares an encoder
and its gradient with the step, here both are written down.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.config import EndToEnd, MemoryBank, Shuffle
from moco_jax.core import bank, randomness
from moco_jax.core.optimizers import sgd
from moco_jax.mechanisms import MECHANISMS
from moco_jax.models.encoder import Encoder
from moco_jax.state import Facts
from moco_jax.views import Views
from tests import tiny

G, C, D, T, RECORDS = 8, 3, 5, 0.3, 20
RATE, MOMENTUM, DECAY, STEP = 0.2, 0.9, 1e-2, 4
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(RECORDS, D))
IDS = np.stack([RNG.permutation(RECORDS)[:G], RNG.permutation(RECORDS)[:G]], axis=1).astype(np.int32)
W, W2, BUFFER, BUFFER2 = (RNG.normal(size=(D, C)) for _ in range(4))


def linear():
    """An encoder of one matrix, without statistics."""

    def init(key):
        return {"params": {"w": jnp.asarray(W)}, "batch_stats": {}}

    def project(params, batch_stats, x):
        return x @ params["w"], batch_stats

    return Encoder(init, project, lambda params, _, x: {"head": x @ params["w"]}, "linear")


def mechanism(c):
    raw = lambda batch, data, positions, key: tuple(data["images"][batch["ids"][:, v]] for v in range(2))  # noqa: E731
    views = Views(2, raw, lambda x, positions, key, view: x)
    optimizer = sgd(lambda step: jnp.asarray(RATE), momentum=MOMENTUM, weight_decay=DECAY)
    return MECHANISMS[c.mechanism](linear(), views, optimizer, c, facts=Facts(RECORDS, (D,), 2))


def stepped(c, change, devices=2):
    """(state before, state after, metrics) of a step by vmap over two devices."""
    m = mechanism(c)
    state = change(jax.jit(m.init)()).replace(step=jnp.asarray(STEP, jnp.int32))
    mapped = jax.jit(jax.vmap(m.step, axis_name="batch", in_axes=(None, 0, None)))
    out = mapped(state, {"ids": jnp.asarray(IDS).reshape(devices, -1, 2)}, {"images": jnp.asarray(IMAGES)})
    return jax.tree.map(np.asarray, (state, *jax.tree.map(lambda a: a[0], out)))


def buffers(*values):
    """The optimizer's momentum buffers, put in place of the zeros of the start."""

    def change(state):
        leaves, structure = jax.tree.flatten(state.optimizer)
        assert len(leaves) == len(values)
        return state.replace(optimizer=structure.unflatten([jnp.asarray(v) for v in values]))

    return change


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def through_unit(z, gradient):
    """The gradient with respect to z of what has `gradient` with respect to z / |z|."""
    u = unit(z)
    return (gradient - (gradient * u).sum(1, keepdims=True) * u) / np.linalg.norm(z, axis=1, keepdims=True)


def softmax(scores):
    weight = np.exp(scores - scores.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)


def updated(w, buffer, gradient):
    buffer = MOMENTUM * buffer + gradient + DECAY * w
    return w - RATE * buffer, buffer


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_end_to_end(shared, symmetric, float64):
    """Keys get their gradient from all queries of the batch: dL/dk = sum over queries of (p - 1 at its own) q / T."""
    section = EndToEnd(temperature=T, symmetric=symmetric, shared=shared)
    c = tiny.double(tiny.end_to_end(end_to_end=section))
    c = dataclasses.replace(c, batch_size=G, shuffle=Shuffle(4))
    given = buffers(BUFFER) if shared else buffers(BUFFER, BUFFER2)

    def change(state):
        state = given(state)
        return state if shared else state.replace(target=state.target.replace(params={"w": jnp.asarray(W2)}))

    _, after, metrics = stepped(c, change)
    weights, gradients, loss, alike = [W, W if shared else W2], [np.zeros_like(W), np.zeros_like(W)], 0.0, []
    for query, key in ((0, 1), (1, 0))[: 1 + symmetric]:
        x, y = IMAGES[IDS[:, query]], IMAGES[IDS[:, key]]
        zq, zk = x @ weights[0], y @ weights[1]
        q, k = unit(zq), unit(zk)
        p = softmax(q @ k.T / T)
        loss += -np.log(np.diag(p)).mean()
        alike.append((np.diag(q @ k.T).mean(), (q @ k.T)[~np.eye(G, dtype=bool)].mean()))
        wrong = (p - np.eye(G)) / (G * T)  # dL / d(q k)
        gradients[0] += x.T @ through_unit(zq, wrong @ k)
        gradients[1] += y.T @ through_unit(zk, wrong.T @ q)
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-12)
    cosines = [float(metrics[f"{name}_similarity"]) for name in ("positive", "negative")]
    np.testing.assert_allclose(cosines, np.mean(alike, axis=0), rtol=1e-11)
    assert mechanism(c).chance == pytest.approx((1 + symmetric) * np.log(G))
    if shared:
        expected = [updated(W, BUFFER, gradients[0] + gradients[1])]
        got = [after.online.params["w"]]
    else:
        expected = [updated(W, BUFFER, gradients[0]), updated(W2, BUFFER2, gradients[1])]
        got = [after.online.params["w"], after.target.params["w"]]
    for (w, buffer), found, kept in zip(expected, got, jax.tree.leaves(after.optimizer), strict=True):
        np.testing.assert_allclose(found, w, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(kept, buffer, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("loss", ["infonce", "nce"])
def test_memory_bank(loss, float64):
    """The query alone has a gradient; the draw is the project's own, all else is numpy."""
    size, momentum, z = 6, 0.5, 40.0
    c = tiny.double(tiny.memory_bank(memory_bank=MemoryBank(size, momentum, T, loss)))
    c = dataclasses.replace(c, batch_size=G)
    stored = unit(RNG.normal(size=(RECORDS, C)))

    def change(state):
        known = {"log_z": jnp.asarray(np.log(z)), "batches": jnp.asarray(100, jnp.int32)}  # estimated before
        memory = state.memory.replace(bank=jnp.asarray(stored), **known)
        return buffers(BUFFER)(state).replace(memory=memory)

    _, after, metrics = stepped(c, change)
    key = randomness.key(c.seed, STEP, randomness.NEGATIVES)
    noise = np.asarray(bank.drawn(key, jnp.arange(G), jnp.asarray(IDS[:, 1]), size, RECORDS))
    x = IMAGES[IDS[:, 0]]
    zq = x @ W
    q = unit(zq)
    compared = np.concatenate([stored[IDS[:, 1]][:, None], stored[noise]], axis=1)  # (G, 1 + K, C)
    scores = (compared * q[:, None]).sum(2) / T
    own = np.eye(1, 1 + size)  # the key's column
    if loss == "infonce":
        p = softmax(scores)
        expected = -np.log(p[:, 0]).mean()
    else:
        model = np.exp(scores) / z
        p = model / (model + size / RECORDS)  # of the key, not of noise
        expected = -(np.log(p[:, 0]) + np.log(1 - p[:, 1:]).sum(1)).mean()
    wrong = (p - own) / (G * T)  # dL / d(q k), of either loss
    w, buffer = updated(W, BUFFER, x.T @ through_unit(zq, (wrong[:, :, None] * compared).sum(1)))
    rows = stored.copy()
    rows[IDS[:, 0]] = unit(momentum * stored[IDS[:, 0]] + (1 - momentum) * q)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-12)
    spread = np.linalg.eigvalsh(np.cov(q.T))  # of all devices' features
    assert float(metrics["effective_rank"]) == pytest.approx(spread.sum() ** 2 / (spread**2).sum(), rel=1e-10)
    np.testing.assert_allclose(after.online.params["w"], w, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(jax.tree.leaves(after.optimizer)[0], buffer, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(after.memory.bank, rows, rtol=1e-12, atol=1e-14)
    assert float(after.memory.log_z) == np.log(z)
