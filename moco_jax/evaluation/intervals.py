"""Means with 95 % intervals: over draws of labels, and over resamples of the test images."""

from typing import NamedTuple

import numpy as np

CHUNK = 50  # resamples drawn at once


class Interval(NamedTuple):
    """A mean and half the width of its 95 % interval; None where one value says nothing of the spread."""

    mean: float
    half_width: float | None
    draws: int


def over_draws(values: list[float]) -> Interval:
    """Student's t over the values of independent draws."""
    from scipy import stats

    found = np.asarray(values, np.float64)
    if len(found) < 2:
        return Interval(float(found.mean()), None, len(found))
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return Interval(float(found.mean()), float(half), len(found))


def paired(ours: list[float], theirs: list[float]) -> Interval:
    """Ours minus theirs over the same draws."""
    return over_draws(np.subtract(ours, theirs).tolist())


def resampled(values: np.ndarray, groups: np.ndarray | None, *, resamples: int, seed: int) -> Interval:
    """The mean of (Q,) values and half the 95 % percentile interval of `resamples` bootstrap means.

    Test images are drawn with replacement, whole groups (Q,) where those are given, as images of one patient are not
    independent. Equal seeds draw the same images, whatever the values.
    """
    _, group = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    sums, sizes = np.bincount(group, values), np.bincount(group)  # (groups,)
    rng, means = np.random.default_rng(seed), []
    for start in range(0, resamples, CHUNK):
        drawn = rng.integers(len(sums), size=(min(CHUNK, resamples - start), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(np.mean(values)), float(high - low) / 2, resamples)


def paired_resampled(
    ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray | None, *, resamples: int, seed: int
) -> Interval:
    """Ours minus theirs on the same resamples of the test images."""
    return resampled(np.subtract(ours, theirs), groups, resamples=resamples, seed=seed)
