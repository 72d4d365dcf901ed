"""A memory bank: a step written out by hand, and what it says of the rows that it stores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.config import MemoryBank
from moco_jax.core import bank, nce, randomness
from moco_jax.state import Network
from tests import tiny
from tests.mechanisms.by_hand import IDS, SEED, STEP, STORED, G, T, buffers_of, noisy, seen, sgd, stepped, unit

K, M, LOG_Z, RECORDS = 12, 0.25, 7.5, tiny.RECORDS


def config(**section):
    return tiny.double(tiny.memory_bank(memory_bank=MemoryBank(K, M, T, **section), seed=SEED))


def mechanism(c, encoder=None):
    return tiny.mechanism(c, STORED, tiny.LIGHT, encoder=encoder or tiny.small_encoder(c, 2))


def start(m):
    """A state with a bank of its own age, statistics and momentum buffers moved."""
    state = jax.tree.map(np.asarray, jax.jit(m.init)())
    rows = unit(noisy(np.zeros((RECORDS, 8)), 5, scale=1.0) - 0.5)
    written = np.arange(RECORDS, dtype=np.int32) % 4 - 1
    return state.replace(
        step=np.int32(STEP),
        online=Network(noisy(state.online.params, 1), noisy(state.online.batch_stats, 2)),
        optimizer=noisy(state.optimizer, 6),
        memory=bank.Bank(rows, written, np.asarray(LOG_Z), np.int32(3)),
    )


def by_hand(c, encoder, state):
    """(online, buffers, bank, loss, pretext accuracy, mean cosine of negatives) of one step: figure 2b, row by row."""
    (images, _), loss = seen(), c.memory_bank.loss
    noise = bank.drawn(randomness.key(SEED, STEP, 9), jnp.arange(G), jnp.asarray(IDS[:, 1]), K, RECORDS)
    stored, noise = state.memory.bank, np.asarray(noise)

    def loss_of(params):
        z, stats = encoder.project(params, state.online.batch_stats, images)
        q = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        positive = jnp.stack([q[i] @ stored[IDS[i, 1]] for i in range(G)]) / T
        others = jnp.stack([stored[noise[i]] @ q[i] for i in range(G)]) / T
        if loss == "infonce":
            total = -jnp.mean(positive - jnp.log(jnp.exp(positive) + jnp.exp(others).sum(1)))
            constant = jnp.exp(LOG_Z)
        else:  # the last of four batches; all that was drawn counts, as published
            now = RECORDS * jnp.exp(jnp.concatenate([positive[:, None], others], axis=1)).mean()
            constant = jax.lax.stop_gradient((3 * jnp.exp(LOG_Z) + now) / 4)
            p, o = jnp.exp(positive) / constant, jnp.exp(others) / constant
            total = -jnp.mean(jnp.log(p / (p + K / RECORDS)) + jnp.log(K / RECORDS / (o + K / RECORDS)).sum(1))
        return total, (stats, q, constant, jnp.mean(positive >= others.max(1)), others.mean() * T)

    found = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(state.online.params)
    (total, (stats, q, constant, hit, negative)), gradient = found
    params, buffers = sgd(state.online.params, buffers_of(state), gradient)
    rows, written = stored.copy(), state.memory.written.copy()
    for i in range(G):
        rows[IDS[i, 0]] = unit(M * stored[IDS[i, 0]] + (1 - M) * np.asarray(q[i]))
        written[IDS[i, 0]] = STEP
    memory = bank.Bank(rows, written, jnp.log(constant), np.int32(4 if loss == "nce" else 3))
    return Network(params, stats), buffers, memory, [total, hit, negative]


@pytest.mark.parametrize("loss", ["infonce", "nce"])
def test_a_step_is_what_the_papers_say(loss, float64):
    """Draw, logits, loss, gradient, SGD, the bank's rows: all of the new state, and the step's own metrics.

    The two views of a row come from different records here: the key is that of view 1, stored is that of view 0.
    """
    c = config(loss=loss, nce_batches=4)
    encoder = tiny.small_encoder(c, 2)
    m = mechanism(c, encoder)
    state = start(m)
    after, metrics = stepped(m, state)
    online, buffers, memory, measures = by_hand(c, encoder, state)
    gap, where = tiny.distance([after.online, buffers_of(after), after.memory], [online, buffers, memory])
    assert gap < 1e-5, f"{where}: {gap:.1e}"
    assert int(after.step) == STEP + 1 and after.target is None
    names = ("loss", "pretext_accuracy", "negative_similarity")
    np.testing.assert_allclose([metrics[name] for name in names], measures, rtol=1e-5)
    ages = STEP - state.memory.written[state.memory.written >= 0]
    got = [metrics[f"bank_{name}"] for name in ("age_mean", "age_max", "filled")]
    np.testing.assert_allclose(got, [ages.mean(), ages.max(), 0.75], rtol=1e-5)


def test_once_fixed_the_constant_of_nce_is_handed_on():
    """Estimated from the first batch alone by default, as published."""
    m = mechanism(tiny.memory_bank(memory_bank=MemoryBank(K, M, T, "nce")))
    state = jax.jit(m.init)()
    first, metrics = stepped(m, state)
    assert float(first.memory.log_z) == float(metrics["log_z"]) != 0
    second, metrics = stepped(m, first)
    assert float(second.memory.log_z) == float(metrics["log_z"]) == float(first.memory.log_z)


def test_contrast_says_what_the_step_would_store(float64):
    """Its keys are the features of the rows; where nothing of the old is kept, the bank holds just them."""
    c = tiny.double(tiny.memory_bank(memory_bank=MemoryBank(K, 0.0, T)))
    m = mechanism(c)
    data = {"images": jnp.asarray(STORED)}

    def on_one_device(function):
        mapped = jax.jit(jax.vmap(function, axis_name="batch"))
        return jax.tree.map(lambda a: a[0], mapped({"ids": jnp.asarray(IDS)[None]}))

    state = jax.tree.map(jnp.asarray, start(m))
    found = on_one_device(lambda batch: m.contrast(state, batch, data))
    after, metrics = jax.tree.map(jnp.asarray, stepped(m, state))
    held = on_one_device(lambda batch: m.stored(after, batch, jnp.asarray(STEP)))
    np.testing.assert_allclose(held, found.keys, atol=1e-12)
    assert float(metrics["loss"]) == pytest.approx(
        float(jnp.mean(jax.nn.logsumexp(found.logits[0], 1) - found.logits[0, :, 0]))
    )


def test_half_the_memory_trains():
    """bfloat16 rows stay so, and the loss is that of float32 to their rounding."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        m = mechanism(tiny.memory_bank(memory_bank=MemoryBank(K, M, T, dtype=dtype)))
        after, metrics = stepped(m, jax.jit(m.init)())
        assert after.memory.bank.dtype == jnp.dtype(dtype)
        losses[dtype] = float(metrics["loss"])
    assert losses["float32"] == pytest.approx(losses["bfloat16"], abs=0.05) and len(set(losses.values())) == 2


def test_chance_and_refusals():
    """ln(K + 1), or NCE's; a batch without ids and a config without K are no use."""
    assert mechanism(tiny.memory_bank()).chance == pytest.approx(np.log(K + 1))
    published = MemoryBank(K, M, T, "nce")
    assert mechanism(tiny.memory_bank(memory_bank=published)).chance == nce.chance(K)
    m = mechanism(tiny.memory_bank())
    state = jax.jit(m.init)()
    for function in (m.step, m.contrast):
        with pytest.raises(ValueError, match=r"needs batch\['ids'\]"):
            jax.eval_shape(lambda f=function: f(state, {}, {}))
    with pytest.raises(ValueError, match="resolved config"):
        mechanism(tiny.memory_bank(memory_bank=dataclasses.replace(published, size=None)))
