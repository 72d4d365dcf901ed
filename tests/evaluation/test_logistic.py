"""Logistic regression on frozen features."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from moco_jax.evaluation import logistic


def data(signal, seed=0):
    rng = np.random.default_rng(seed)
    labels = (np.arange(60) % 3, np.arange(45) % 3)
    make = lambda y: rng.normal(size=(len(y), 5)) + signal * np.eye(5)[y]  # noqa: E731
    return (make(labels[0]), make(labels[1])), labels


def test_signal_is_found_and_noise_is_chance():
    """By image of the test split."""
    for signal, low, high in ((2.0, 0.8, 1.0), (0.0, 0.1, 0.6)):
        features, labels = data(signal)
        right = logistic.correct(features, labels, np.arange(60), penalty=1.0)
        assert right.shape == (45,) and low <= right.mean() <= high


def test_only_the_rows_are_fitted_to():
    """Wrong labels elsewhere change nothing."""
    features, labels = data(2.0)
    rows, wrong = np.arange(30), labels[0].copy()
    wrong[30:] = 0
    for penalty in (0.01, 1.0):
        a, b = (logistic.correct(features, (y, labels[1]), rows, penalty=penalty) for y in (labels[0], wrong))
        np.testing.assert_array_equal(a, b)


def test_standardisation_never_sees_the_test_images():
    """Shifting test features by a constant must change predictions, not be absorbed."""
    features, labels = data(2.0)
    shifted = (features[0], features[1] + 50 * np.eye(5)[0])
    assert logistic.correct(shifted, labels, np.arange(60), penalty=1.0).mean() < 0.5


def test_the_penalty_is_scikit_learns_c():
    """By its classifier on features standardised by hand; of three penalties each gives other answers."""
    (train, test), labels = data(0.7)
    rows, found = np.arange(20), set()
    center, scale = train[rows].mean(0), train[rows].std(0)
    for penalty in (1e-3, 1.0, 1e3):
        fitted = LogisticRegression(C=penalty, max_iter=2000).fit((train[rows] - center) / scale, labels[0][rows])
        right = logistic.correct((train, test), labels, rows, penalty=penalty)
        np.testing.assert_array_equal(right, fitted.predict((test - center) / scale) == labels[1])
        found.add(right.tobytes())
    assert len(found) == 3
