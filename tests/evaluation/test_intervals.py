"""Intervals over draws and over resamples of the test images."""

import numpy as np
import pytest

from moco_jax.evaluation import intervals


def test_draws_have_students_interval():
    """t(.975, 5) = 2.5706; one draw has none."""
    values = [0.5, 0.6, 0.7, 0.65, 0.55, 0.6]
    found = intervals.over_draws(values)
    assert found.mean == pytest.approx(0.6) and found.draws == 6
    assert found.half_width == pytest.approx(2.5706 * np.std(values, ddof=1) / np.sqrt(6), rel=1e-4)
    assert intervals.over_draws([0.5]) == (0.5, None, 1)
    assert intervals.paired([0.7, 0.8], [0.6, 0.7]).half_width == pytest.approx(0, abs=1e-9)


def test_resamples_of_images_agree_with_the_binomial():
    """1.96 sqrt(p (1 - p) / Q), to the noise of 2,000 resamples."""
    right = (np.arange(400) % 5 > 0).astype(float)
    found = intervals.resampled(right, None, resamples=2000, seed=0)
    assert found.mean == 0.8 and found.half_width == pytest.approx(1.96 * np.sqrt(0.16 / 400), rel=0.08)
    assert found == intervals.resampled(right, None, resamples=2000, seed=0)


def test_images_of_a_group_are_one_draw():
    """20 groups of 20 equal images tell as much as 20 images."""
    right = np.repeat(np.arange(20) % 5 > 0, 20).astype(float)
    found = intervals.resampled(right, np.repeat(np.arange(20), 20), resamples=2000, seed=0)
    assert found.half_width == pytest.approx(1.96 * np.sqrt(0.16 / 20), rel=0.1)


def test_pairs_share_their_resamples():
    """Two rows that are wrong on the same images differ by nothing, however wide each is."""
    right = (np.arange(100) % 3 > 0).astype(float)
    found = intervals.paired_resampled(right, right, None, resamples=100, seed=0)
    assert found.mean == found.half_width == 0
    better = intervals.paired_resampled(np.ones(100), right, None, resamples=100, seed=0)
    assert better.mean == pytest.approx(0.34) and 0 < better.half_width < 0.15
