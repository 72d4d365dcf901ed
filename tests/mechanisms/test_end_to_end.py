"""End to end: a step written out by hand, what its negatives are, and where gradients go."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.config import EndToEnd, Shuffle
from moco_jax.core import axis
from moco_jax.state import Network
from tests import tiny
from tests.mechanisms.by_hand import IDS, STEP, STORED, G, T, buffers_of, noisy, order, seen, sgd, stepped, unit


def mechanism(c, encoder=None):
    return tiny.mechanism(c, STORED, tiny.LIGHT, encoder=encoder or tiny.small_encoder(c, 2))


def config(**section):
    return tiny.double(tiny.end_to_end(end_to_end=EndToEnd(temperature=T, **section)))


def start(m):
    """A state whose networks, statistics and momentum buffers all differ."""
    state = jax.tree.map(np.asarray, jax.jit(m.init)())
    networks = [
        None if n is None else Network(noisy(n.params, 1 + 2 * i), noisy(n.batch_stats, 2 + 2 * i))
        for i, n in enumerate((state.online, state.target))
    ]
    return state.replace(
        step=np.int32(STEP), online=networks[0], target=networks[1], optimizer=noisy(state.optimizer, 6)
    )


def by_hand(c, encoder, state):
    """(online, target, buffers, loss, pretext accuracy) of one step: figure 2a, pair by pair."""
    images, section = seen(), c.end_to_end
    directions = [(0, 1), (1, 0)][: 1 + section.symmetric]
    orders = [order(d, c.shuffle.block) for d in range(2)]
    nets = [state.online] if section.shared else [state.online, state.target]

    def loss_of(params):
        stats, total, hits = [n.batch_stats for n in nets], 0.0, []
        for d, (query_view, key_view) in enumerate(directions):
            z, stats[0] = encoder.project(params[0], stats[0], images[query_view])
            q = z / jnp.linalg.norm(z, axis=1, keepdims=True)
            p = orders[d]
            z, stats[-1] = encoder.project(params[-1], stats[-1], images[key_view][p])
            k = (z / jnp.linalg.norm(z, axis=1, keepdims=True))[np.argsort(p)]
            scores = q @ k.T / T
            total += -jnp.mean(jnp.diag(scores) - jnp.log(jnp.exp(scores).sum(1)))
            hits.append(jnp.mean(jnp.diag(scores) >= jnp.where(jnp.eye(G, dtype=bool), -9e9, scores).max(1)))
        return total, (stats, sum(hits) / len(hits))

    params = tuple(n.params for n in nets)
    (loss, (stats, hit)), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    params, buffers = sgd(params, buffers_of(state), gradient)
    return [Network(p, s) for p, s in zip(params, stats, strict=True)], buffers, loss, hit


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_step_is_what_the_paper_says(symmetric, shared, float64):
    """Both sides encoded, both sides' gradients, SGD: all of the new state, and the step's own metrics."""
    c = config(symmetric=symmetric, shared=shared)
    encoder = tiny.small_encoder(c, 2)
    m = mechanism(c, encoder)
    state = start(m)
    after, metrics = stepped(m, state)
    networks, buffers, loss, hit = by_hand(c, encoder, state)
    got = [n for n in (after.online, after.target) if n is not None]
    gap, where = tiny.distance([got, buffers_of(after)], [networks, buffers])
    assert gap < 1e-5, f"{where}: {gap:.1e}"
    assert int(after.step) == STEP + 1 and (after.target is None) == shared and after.memory == ()
    np.testing.assert_allclose([metrics["loss"], metrics["pretext_accuracy"]], [loss, hit], rtol=1e-5)


def test_it_is_nt_xent_without_the_negatives_of_the_querys_own_view(float64):
    """SimCLR's loss over 2G features, the G - 1 other features of the same view taken out of each row's sum.

    Without batch norm, where a view encoded twice is the same twice. What is left out matters.
    """
    c = dataclasses.replace(config(symmetric=True), shuffle=Shuffle(0))
    encoder = tiny.small_encoder(c, 2, batch_norm=False)
    m = mechanism(c, encoder)
    state = start(m)
    _, metrics = stepped(m, state)
    z = np.concatenate([encoder.project(state.online.params, {}, x)[0] for x in seen()])
    scores = unit(z) @ unit(z).T / T  # (2G, 2G)
    other = np.roll(np.arange(2 * G), G)  # the same image in the other view
    np.fill_diagonal(scores, -np.inf)
    simclr = np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(2 * G), other])
    view = np.arange(2 * G) // G
    scores[view[:, None] == view[None, :]] = -np.inf
    ours = np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(2 * G), other])
    assert float(metrics["loss"]) == pytest.approx(2 * ours, rel=1e-6)  # a sum over directions, not a mean
    assert simclr - ours > 0.1


def test_queries_and_keys_begin_alike_and_a_shared_encoder_is_one():
    """Two: equal values in buffers of their own, both under the optimizer; one: nothing is held twice."""
    two, one = (jax.jit(mechanism(tiny.end_to_end(end_to_end=EndToEnd(T, shared=s))).init)() for s in (False, True))
    jax.tree.map(np.testing.assert_array_equal, two.online, two.target)
    count = lambda tree: sum(a.size for a in jax.tree.leaves(tree))  # noqa: E731
    assert one.target is None
    assert count(buffers_of(one)) == count(one.online.params)
    assert count(buffers_of(two)) == 2 * count(two.online.params)


def test_gradients_reach_keys_on_other_devices(float64):
    """The loss of one device's queries alone moves the keys of another's images, as it does on one device.

    Four devices, no batch norm, two encoders: the gradient of the first device's loss with respect to the key encoder,
    summed over devices, is that of the first four rows of the whole batch.
    """
    c = dataclasses.replace(config(shared=False), shuffle=Shuffle(4))
    encoder = tiny.small_encoder(c, 2, batch_norm=False)
    m = mechanism(c, encoder)
    state = start(m)

    def loss(key_params, batch):
        moved = state.replace(target=state.target.replace(params=key_params))
        logits = m.contrast(moved, batch, {"images": jnp.asarray(STORED)}).logits[0]
        rows = jax.nn.logsumexp(logits, axis=1) - logits[:, 0]
        first = axis.here(len(rows)) < 4  # the queries of the first of four devices
        return jnp.sum(jnp.where(first, rows, 0.0))

    def gradient(devices):
        batch = {"ids": jnp.asarray(IDS).reshape(devices, -1, 2)}
        each = jax.vmap(jax.grad(loss), in_axes=(None, 0), axis_name="batch")
        return jax.tree.map(np.asarray, jax.jit(each)(state.target.params, batch))

    one, four = gradient(1), gradient(4)
    assert (
        tiny.distance(jax.tree.map(lambda a: a.sum(0), four), jax.tree.map(lambda a: a[0], one))[0] < 1e-6
    )  # crops are cut in float32
    others = jax.tree.map(lambda a: a[1:], four)  # of devices that hold no query of this loss
    assert all(np.abs(a).max() > 1e-6 for a in jax.tree.leaves(others))


def test_a_query_is_no_negative_of_itself():
    """Its own column is left out: G - 1 negatives, the keys of the other images in the order of the batch."""
    c = tiny.end_to_end()
    m = mechanism(c)
    state = jax.jit(m.init)()
    contrast = jax.vmap(m.contrast, axis_name="batch", in_axes=(None, 0, None))
    found = jax.jit(contrast)(state, {"ids": jnp.asarray(IDS)[None]}, {"images": jnp.asarray(STORED)})
    logits, keys = np.asarray(found.logits[0, 0]), np.asarray(found.keys[0, 0])
    assert logits.shape == (G, 1 + G) and np.array_equal(np.isneginf(logits[:, 1:]), np.eye(G, dtype=bool))
    finite = np.where(np.eye(G, dtype=bool), logits[:, :1], logits[:, 1:])  # (G, G), each its own back in its place
    q = np.linalg.lstsq(keys, finite.T * T, rcond=None)[0].T
    np.testing.assert_allclose(q @ keys.T, finite * T, atol=1e-4)
    assert m.chance == pytest.approx(np.log(G)) and m.stored is None


def test_an_unresolved_config_is_refused():
    """It has to know the block."""
    with pytest.raises(ValueError, match="resolved config"):
        mechanism(tiny.end_to_end(shuffle=Shuffle()))
