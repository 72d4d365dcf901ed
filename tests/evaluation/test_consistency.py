"""Key consistency: 1 where the target stands still, less the older the keys are where it moves."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from moco_jax import parallel
from moco_jax.config import Moco, Queue
from moco_jax.evaluation import consistency
from tests import tiny

DEVICES, STEPS = 2, 7
STORED = tiny.images()
BASE = tiny.config(seed=3)
SIGNS = np.random.default_rng(0).choice([-1, 1], 80).astype(np.float32)


@functools.cache
def measured(momentum, symmetric, mask):
    """The numbers after STEPS steps on two devices, the steps asked for, and the numbers with signs turned by SIGNS."""
    size = 80 if symmetric else 70  # two and a half steps of 32, four and some of 16
    c = dataclasses.replace(BASE, moco=Moco(momentum, 0.2, symmetric), queue=Queue(size, mask_same_image=mask))
    m = tiny.mechanism(c, STORED, tiny.LIGHT, encoder=tiny.small_encoder(c, 3))
    over = jax.devices()[:DEVICES]
    state, data = tiny.born(m, over), {"images": jax.device_put(STORED, parallel.replicated(over))}
    mapped = parallel.mapped(m.step, over)
    asked = []

    def batches(first_step, last_step):
        asked.append((first_step, last_step))
        return iter(tiny.batches(c, last_step - first_step, first_step))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: DEVICES)
        patch.setattr(jax, "local_devices", lambda: over)
        evaluate = consistency.key_consistency(m, batches, data)
        assert evaluate(state) == {} and not asked
        for batch in tiny.batches(c, STEPS):
            state, _ = mapped(state, jax.tree.map(lambda a: a.reshape(DEVICES, 16 // DEVICES, -1), batch), data)
        found, asked_once = evaluate(state), list(asked)
        turned = jax.device_put(np.asarray(state.memory.queue) * SIGNS[:size, None], parallel.replicated(over))
        return found, asked_once, evaluate(state.replace(memory=state.memory.replace(queue=turned)))


def cosines(found):
    return [found[f"key_cosine_{p}"] for p in consistency.PERCENT]


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_key_is_found_again_where_the_target_stands_still(symmetric):
    """Momentum 1: every cosine is 1 to rounding, so crops, augmentation, shuffle, groups and rows are the step's own.

    The online network moves all the while; a row further, or the other view's keys, are far from 1.
    """
    found, asked, _ = measured(1.0, symmetric, mask=symmetric)
    np.testing.assert_allclose(cosines(found), 1, atol=2e-6)
    ages = [1, 1, 1, 2, 2] if symmetric else [1, 2, 3, 3, 4]
    assert [found[f"key_age_{p}"] for p in consistency.PERCENT] == ages
    assert asked == [(STEPS - age, STEPS - age + 1) for age in sorted(set(ages))]  # each age once


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_cosine_is_the_mean_over_a_steps_own_rows(symmetric):
    """Rows of the queue turned about by random signs: what is left is the mean sign of the rows that the step wrote."""
    found, _, turned = measured(1.0, symmetric, mask=symmetric)
    per_step, size = (32, 80) if symmetric else (16, 70)
    for p in consistency.PERCENT:
        rows = (np.arange(per_step) + (STEPS - found[f"key_age_{p}"]) * per_step) % size
        assert turned[f"key_cosine_{p}"] == pytest.approx(SIGNS[rows].mean(), abs=1e-5)


def test_keys_differ_the_more_the_older_they_are():
    """A target that follows fast has moved from them, step by step."""
    found, _, _ = measured(0.5, False, mask=False)
    one, two, three, _, four = cosines(found)
    assert 1 - 1e-4 > one > two > three > four > 0


def test_ages_are_whole_steps_from_the_newest_to_the_oldest():
    """A queue not yet full holds the steps there were; one of a single step the same age five times.

    Steps of which a key is overwritten do not count, such as those of a bank whose images came again.
    """
    ages = consistency.whole_ages
    assert ages(500, np.repeat(np.arange(244, 500), 256)) == [1, 65, 129, 192, 256]
    assert ages(3, np.append(np.repeat(np.arange(3), 256), [-1] * 999)) == [1, 1, 2, 3, 3]
    assert ages(9, np.append([8] * 16, 7)) == [1] * 5
    assert ages(6, np.repeat([2, 3, 4, 5], [4, 3, 4, 4])) == [1, 1, 2, 4, 4]
    assert ages(0, np.full(7, -1)) == []
