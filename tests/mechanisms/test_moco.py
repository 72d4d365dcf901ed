"""The MoCo step: what moves, what must not, and in which order (arXiv:1911.05722, Algorithm 1)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import parallel
from moco_jax.config import Moco, Queue, Shuffle
from moco_jax.core import losses
from tests import tiny

CONFIG = tiny.config()
STORED = tiny.images()


def mechanism(c, **options):
    """The shipped mechanism with an encoder of one convolution: compiles in a second or two."""
    return tiny.mechanism(c, STORED, tiny.LIGHT, encoder=tiny.small_encoder(c, 3), **options)


def on_one_device(function, state, step=0):
    """A per-device function of (state, batch, data), by vmap over one device: cheap, and free of pmap."""
    batch = {"ids": jnp.asarray(tiny.ids(step, CONFIG.batch_size))[None]}
    mapped = jax.vmap(lambda b: function(state, b, {"images": jnp.asarray(STORED)}), axis_name="batch")
    return jax.tree.map(lambda a: a[0], mapped(batch))


@pytest.fixture(scope="module")
def before():
    """A state whose target has moved away from online and whose queue is half filled."""
    state = jax.jit(mechanism(CONFIG).init)()
    noise = lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape, a.dtype)  # noqa: E731
    target = state.target.replace(params=jax.tree.map(noise, state.target.params))
    return state.replace(target=target, step=jnp.asarray(3, jnp.int32))


@pytest.fixture(scope="module")
def after(before):
    """The state and metrics after one step."""
    return on_one_device(jax.jit(mechanism(CONFIG).step), before, step=3)


@pytest.fixture(scope="module")
def forward(before):
    """Logits (1, N, 1 + K) and keys (1, N, C) of that step, by the mechanism's own contrast."""
    return on_one_device(jax.jit(mechanism(CONFIG).contrast), before, step=3)


def test_target_starts_as_an_exact_copy_with_buffers_of_its_own():
    """Equal values, head included; a shared buffer would be donated twice, which crashes on two devices."""
    state = parallel.born(mechanism(CONFIG).init)
    jax.tree.map(np.testing.assert_array_equal, state.online.params, state.target.params)
    pointers = [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_target_follows_the_online_parameters_of_before_the_step(before, after):
    """EMA first, then SGD: m target + (1 - m) online(t), not online(t + 1)."""
    expected = jax.tree.map(lambda t, o: 0.9 * t + 0.1 * o, before.target.params, before.online.params)
    assert tiny.distance(after[0].target.params, expected)[0] < 1e-6
    assert tiny.distance(after[0].online.params, before.online.params)[0] > 1e-3


def test_batch_statistics_of_the_target_are_its_own(before, after):
    """They advance by the keys' own batches and are no average of the online ones."""
    online, target = after[0].online.batch_stats, after[0].target.batch_stats
    assert tiny.distance(target, before.target.batch_stats)[0] > 1e-3
    assert tiny.distance(target, online)[0] > 1e-3


def test_keys_of_the_step_are_enqueued_in_original_order_after_the_logits(before, after, forward):
    """Row i of the batch at pointer + i; the logits of the step saw the queue of before."""
    memory = after[0].memory
    np.testing.assert_allclose(memory.queue[:16], forward.keys[0], atol=1e-6)
    np.testing.assert_array_equal(memory.queue[16:], before.memory.queue[16:])
    assert int(memory.ptr) == 16 and set(np.asarray(memory.written[:16])) == {3}
    # The logits are reproduced from keys and the old queue: similarity to each old row, recovered from the K columns.
    logits = np.asarray(forward.logits[0])
    gram = np.linalg.lstsq(np.asarray(before.memory.queue), logits[:, 1:].T * 0.2, rcond=None)[0].T  # the queries
    np.testing.assert_allclose(np.linalg.norm(gram, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose((gram * forward.keys[0]).sum(1) / 0.2, logits[:, 0], atol=1e-2)


def test_loss_and_measures_are_those_of_the_logits(after, forward):
    """The metrics describe the step's own forward."""
    logits, metrics = forward.logits[0], after[1]
    np.testing.assert_allclose(metrics["loss"], losses.info_nce(logits), rtol=1e-5)
    np.testing.assert_allclose(metrics["pretext_accuracy"], losses.pretext_accuracy(logits), rtol=1e-6)
    np.testing.assert_allclose(metrics["positive_similarity"], logits[:, 0].mean() * 0.2, rtol=1e-5)
    np.testing.assert_allclose(metrics["negative_similarity"], logits[:, 1:].mean() * 0.2, rtol=1e-4, atol=1e-6)


def test_no_gradient_reaches_keys_target_or_queue(before):
    """The loss depends on all three, its gradient as the step takes it on none: keys are constants.

    The gradient of the loss through `contrast` with respect to target parameters is exactly zero, though moving them
    changes the loss; the queue moves only by being overwritten.
    """
    m = mechanism(CONFIG)

    def loss(target_params):
        state = before.replace(target=before.target.replace(params=target_params))
        return losses.info_nce(on_one_device(m.contrast, state, step=3).logits[0])

    value, gradient = jax.jit(jax.value_and_grad(loss))(before.target.params)
    assert all(not np.any(g) for g in jax.tree.leaves(gradient))
    moved = jax.jit(loss)(jax.tree.map(lambda p: p + 0.3, before.target.params))
    assert abs(float(moved) - float(value)) > 1e-3


def test_a_mask_without_the_records_behind_the_queue_is_refused(before):
    """While tracing: a batch of ids alone would otherwise leave nothing out, unseen."""
    m = mechanism(dataclasses.replace(CONFIG, queue=Queue(40, mask_same_image=True)))
    with pytest.raises(ValueError, match=r"needs batch\['queue_ids'\]"):
        jax.eval_shape(lambda: on_one_device(m.step, before, step=3))


def test_optimizer_covers_the_online_parameters_alone(before, after):
    """Momentum buffers have the shapes of the online parameters, once; the target has none and is not decayed."""
    shapes = lambda tree: sorted(a.shape for a in jax.tree.leaves(tree))  # noqa: E731
    assert shapes(after[0].optimizer) == shapes(before.online.params)


def test_symmetric_loss_is_the_sum_and_enqueues_both_views_keys(before):
    """2G keys a step, those of view 0 first, as in the original's CIFAR-10 notebook."""
    c = dataclasses.replace(CONFIG, moco=Moco(0.9, 0.2, symmetric=True))
    m = mechanism(c)
    state, metrics = on_one_device(jax.jit(m.step), before, step=3)
    both = on_one_device(jax.jit(m.contrast), before, step=3)
    expected = losses.info_nce(both.logits[0]) + losses.info_nce(both.logits[1])
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert int(state.memory.ptr) == 32
    # Direction 0 matches query view 0 to keys of view 1; direction 1 the other way: keys of view 0 come second there.
    np.testing.assert_allclose(state.memory.queue[:32], np.concatenate([both.keys[1], both.keys[0]]), atol=1e-6)


def test_without_batch_norm_the_shuffle_is_invisible():
    """Every key comes back to its query: where images do not see each other, shuffling changes nothing at all."""
    c = dataclasses.replace(CONFIG, moco=Moco(0.9, 0.2, symmetric=True))
    plain = tiny.small_encoder(c, 3, batch_norm=False)
    on, off = (
        tiny.run(tiny.mechanism(c_, STORED, tiny.LIGHT, encoder=plain), STORED, batch_size=16, devices=2, steps=2).state
        for c_ in (dataclasses.replace(c, shuffle=Shuffle(16)), dataclasses.replace(c, shuffle=Shuffle(0)))
    )
    gap, where = tiny.distance(on, off)
    assert gap < 1e-5, f"{where}: {gap:.1e}"


def test_a_recorded_permutation_can_be_replayed(before):
    """The draw is an argument: identity sources give the keys of an unshuffled batch."""
    identity = mechanism(CONFIG, permutation=lambda step, direction: jnp.arange(16, dtype=jnp.int32))
    off = mechanism(dataclasses.replace(CONFIG, shuffle=Shuffle(0)))
    a, b = (on_one_device(jax.jit(m.contrast), before, step=3) for m in (identity, off))
    np.testing.assert_allclose(a.keys, b.keys, atol=1e-6)
    shuffled = on_one_device(jax.jit(mechanism(CONFIG).contrast), before, step=3)
    assert np.abs(np.asarray(shuffled.keys) - np.asarray(a.keys)).max() > 1e-3
