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


@functools.cache
def measured(momentum, symmetric, mask):
    """The numbers after STEPS steps on two devices, beside {age: steps of the rows that were compared}."""
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
        evaluate = consistency.key_consistency(m, batches, data, batch_size=c.batch_size)
        assert evaluate(state) == {} and not asked
        for batch in tiny.batches(c, STEPS):
            state, _ = mapped(state, jax.tree.map(lambda a: a.reshape(DEVICES, 16 // DEVICES, -1), batch), data)
        return evaluate(state), asked


def cosines(found):
    return [found[f"key_cosine_{p}"] for p in consistency.PERCENT]


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_key_is_found_again_where_the_target_stands_still(symmetric):
    """Momentum 1: every cosine is 1 to rounding, so crops, augmentation, shuffle, groups and rows are the step's own.

    The online network moves all the while; a row further, or the other view's keys, are far from 1.
    """
    found, asked = measured(1.0, symmetric, mask=symmetric)
    np.testing.assert_allclose(cosines(found), 1, atol=2e-6)
    ages = [1, 1, 1, 2, 2] if symmetric else [1, 2, 3, 3, 4]
    assert [found[f"key_age_{p}"] for p in consistency.PERCENT] == ages
    assert asked == [(STEPS - age, STEPS - age + 1) for age in sorted(set(ages))]  # each age once


def test_keys_differ_the_more_the_older_they_are():
    """A target that follows fast has moved from them, step by step."""
    found, _ = measured(0.5, False, mask=False)
    one, two, three, _, four = cosines(found)
    assert 1 - 1e-4 > one > two > three > four > 0


def test_ages_are_whole_steps_from_the_newest_to_the_oldest():
    """A queue not yet full holds the steps there were; one of a single step the same age five times."""
    assert consistency.whole_ages(500, 256, 65536) == [1, 65, 129, 192, 256]
    assert consistency.whole_ages(3, 256, 65536) == [1, 1, 2, 3, 3]
    assert consistency.whole_ages(9, 16, 17) == [1] * 5
