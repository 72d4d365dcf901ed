"""Learning rates at every epoch boundary, as published."""

import math

import numpy as np
import pytest

from moco_jax.config import ConfigError, Optimizer
from moco_jax.core.schedules import learning_rate, named


def rates(optimizer, steps, *, epochs=200, steps_per_epoch=5, batch_size=256):
    schedule = learning_rate(optimizer, batch_size=batch_size, epochs=epochs, steps_per_epoch=steps_per_epoch)
    return [float(schedule(np.int32(s))) for s in steps]


def test_cosine_is_constant_within_an_epoch_and_counts_from_zero():
    """lr/2 (1 + cos(pi epoch / epochs)), epoch = 0, 1, ...: the first epoch trains at the full rate."""
    steps = [0, 4, 5, 499, 500, 999]
    expected = [0.03 * 0.5 * (1 + math.cos(math.pi * (s // 5) / 200)) for s in steps]
    np.testing.assert_allclose(rates(Optimizer(0.03), steps), expected, rtol=1e-6)
    assert rates(Optimizer(0.03), [4]) == rates(Optimizer(0.03), [0])


def test_step_falls_to_a_tenth_at_the_first_step_of_each_milestone():
    """MoCo v1: .03, from epoch 120 .003, from 160 .0003."""
    optimizer = Optimizer(0.03, schedule="step", milestones=(120, 160))
    got = rates(optimizer, [0, 599, 600, 799, 800, 999])
    np.testing.assert_allclose(got, [0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003], rtol=1e-5)


def test_step_falls_by_the_factor_that_is_asked_for():
    """OpenSelfSup's few labels: a fifth at epochs 12 and 16 of 20."""
    schedule = named("step", 1.0, milestones=(12, 16), epochs=20, steps_per_epoch=2, section="", factor=0.2)
    np.testing.assert_allclose(
        [float(schedule(np.int32(s))) for s in (23, 24, 32, 39)], [1, 0.2, 0.04, 0.04], rtol=1e-6
    )


def test_rate_is_scaled_with_the_batch_only_if_asked_for():
    """.03 stands for the batch as it is; linear scaling is relative to 256."""
    assert rates(Optimizer(0.03), [0], batch_size=1024) == pytest.approx([0.03])
    assert rates(Optimizer(0.03, linear_scaling=True), [0], batch_size=1024) == pytest.approx([0.12])


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (Optimizer(schedule="cosin"), "did you mean 'cosine'"),
        (Optimizer(schedule="step"), "needs optimizer.milestones"),
        (Optimizer(schedule="cosine", milestones=(1,)), "read by schedule 'step' only"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(optimizer, message):
    """A key that nothing reads, a missing one, and a typo."""
    with pytest.raises(ConfigError, match=message):
        rates(optimizer, [0])
