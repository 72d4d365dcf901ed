"""Means with 95 % intervals over what was drawn: labels to fit to, and images (or groups of them) to be judged on."""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean and half the width of its 95 % interval; None where one value says nothing of the spread."""

    mean: float
    half_width: float | None


def share(right: np.ndarray, groups: np.ndarray | None) -> Interval:
    """The share of right answers (R, Q), of R draws of labels on Q test images that belong to groups (Q,).

    Another draw of labels, and other test images, would give another share: the variance of the mean over draws and
    that over images are added, each by Student's t, which counts what belongs to both twice and so errs to the wide
    side. Images of a group are not independent: groups are what is counted. One draw tells nothing of draws. Two images
    more, one right and one wrong, are assumed (Agresti and Coull), so that no perfect score is certain.
    """
    return _mean(np.asarray(right, np.float64), groups, (0.0, 1.0))


def difference(ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray | None) -> Interval:
    """`share` of ours (R, Q) minus theirs on the same draws and images, so that what both find hard counts for nothing.

    One image more that is right for one alone is assumed for each of both.
    """
    return _mean(np.subtract(ours, theirs, dtype=np.float64), groups, (-1.0, 1.0))


def over_draws(shares: list[float], count: int) -> Interval:
    """As `share`, where of `count` test images or groups the share that is right is all that is known.

    Its variance over these is at most binomial. One of them tells nothing of others.
    """
    found = np.asarray(shares, np.float64)  # (R,)
    if count < 2:
        return Interval(float(found.mean()), None)
    mean = float((found.mean() * count + 1) / (count + 2))
    images = _t(count) * np.sqrt(mean * (1 - mean) / count)
    return Interval(float(found.mean()), float(np.hypot(_of_draws(found), images)))


def _mean(values: np.ndarray, groups: np.ndarray | None, assumed: tuple[float, float]) -> Interval:
    """The mean of (R, Q) values and its interval, with two `assumed` images more."""
    mean, images = float(values.mean()), values.mean(0)  # (Q,)
    _, group = np.unique(np.arange(len(images)) if groups is None else groups, return_inverse=True)
    count = int(group.max()) + 1
    if count < 2:
        return Interval(mean, None)
    totals = np.append(np.bincount(group, images - mean), np.subtract(assumed, mean))  # (groups + 2,)
    of_images = _t(count) * np.sqrt(count / (count - 1) * np.sum(totals**2)) / len(images)
    return Interval(mean, float(np.hypot(_of_draws(values.mean(1)), of_images)))


def _of_draws(means: np.ndarray) -> float:
    """Half the width of Student's interval over the means (R,) of draws; 0 for one."""
    return 0.0 if len(means) < 2 else float(_t(len(means)) * means.std(ddof=1) / np.sqrt(len(means)))


def _t(count: int) -> float:
    """Student's 97.5 % point for a mean of that many."""
    from scipy import stats

    return float(stats.t.ppf(0.975, count - 1))
