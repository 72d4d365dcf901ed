"""Intervals that hold the truth as often as they say, whatever was drawn."""

import numpy as np
import pytest

from moco_jax.evaluation import intervals


def test_one_draw_has_the_binomial_interval():
    """1.96 sqrt(p (1 - p) / Q)."""
    right = (np.arange(400) % 5 > 0)[None]
    found = intervals.share(right, None)
    assert found.mean == 0.8 and found.half_width == pytest.approx(1.96 * np.sqrt(0.16 / 400), rel=0.02)
    assert intervals.over_draws([0.8], 400).half_width == pytest.approx(found.half_width, rel=0.01)


def test_draws_of_labels_add_students_interval():
    """t(.975, 2) = 4.303, on images that each draw finds equally hard."""
    shares = np.array([0.7, 0.8, 0.9])
    right = np.arange(100)[None] < 100 * shares[:, None]
    of_draws = 4.303 * 0.1 / np.sqrt(3)
    found, images = intervals.share(right, None), np.var(right.mean(0), ddof=1) / 100
    assert found.half_width == pytest.approx(np.hypot(of_draws, 1.984 * np.sqrt(images)), rel=0.01)
    assert intervals.over_draws(shares.tolist(), 100).half_width == pytest.approx(
        np.hypot(of_draws, 1.984 * np.sqrt(0.16 / 100)), rel=0.01
    )


def test_images_of_a_group_are_one_draw():
    """20 groups of 20 equal images tell as much as 20 images; of one group nothing is known."""
    right = np.repeat(np.arange(20) % 5 > 0, 20)[None]
    found = intervals.share(right, np.repeat(np.arange(20), 20))
    assert found.half_width == pytest.approx(2.093 * np.sqrt(0.16 / 19), rel=0.02)
    assert intervals.share(right, np.zeros(400, int)) == (0.8, None) == intervals.over_draws([0.8], 1)


def test_pairs_share_what_is_hard():
    """Rows that are wrong on the same images are told apart finely; a perfect score or a tie is not certain."""
    right = (np.arange(100) % 3 > 0)[None]
    better = right.copy()
    better[0, 0] = True
    found = intervals.difference(better, right, None)
    assert found.mean == pytest.approx(0.01) and found.half_width < 0.04 < intervals.share(right, None).half_width
    assert 0 < intervals.difference(right, right, None).half_width < 0.03
    assert 0 < intervals.share(np.ones((3, 100), bool), None).half_width < 0.03


@pytest.mark.parametrize(
    ("draws", "images", "per_group"), [(10, 300, 1), (3, 300, 1), (1, 300, 1), (10, 30, 10), (1, 8, 30)]
)
def test_the_interval_of_a_difference_holds_the_truth(draws, images, per_group):
    """Of 400 simulated tables 92 % or more; some draws, groups and images are good for one row or the other."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        groups = np.repeat(np.arange(images), per_group)
        of_draws, of_groups = (
            rng.normal(0, 0.1 * (draws > 1), (draws, 1)),
            np.repeat(rng.normal(0, 0.3, images), per_group),
        )
        both = rng.random((draws, len(groups)))
        ours = both < np.clip(0.6 + of_draws * 0.5 + of_groups, 0, 1)
        theirs = both < np.clip(0.5 - of_draws * 0.5 - of_groups, 0, 1)
        truth = 0.1  # nearly: clipping is even on both sides
        found = intervals.difference(ours, theirs, groups)
        held += abs(found.mean - truth) <= found.half_width
    assert held / 400 >= 0.92
