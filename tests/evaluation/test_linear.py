"""The linear table: paired draws, honest intervals, one text."""

import numpy as np
import pytest

from moco_jax.config import ConfigError
from moco_jax.evaluation import linear


def data(signal, seed=0):
    rng = np.random.default_rng(seed)
    labels = (np.arange(60) % 3, np.arange(45) % 3)
    make = lambda y: rng.normal(size=(len(y), 5)) + signal * np.eye(5)[y]  # noqa: E731
    return (make(labels[0]), make(labels[1])), labels


def test_draws_are_balanced_repeatable_and_without_repeats():
    """`per_class` rows of each class in every draw; the same seed draws the same."""
    labels = np.arange(60) % 3
    draws = linear.draw_few(labels, 4, 5, seed=1)
    assert len(draws) == 5 and all(np.bincount(labels[d]).tolist() == [4, 4, 4] for d in draws)
    assert all(len(set(d)) == 12 for d in draws)
    np.testing.assert_array_equal(draws[3], linear.draw_few(labels, 4, 5, seed=1)[3])
    assert set(draws[0]) != set(draws[1])


def test_compares_the_last_row_with_each_other_over_the_same_draws():
    """Mean difference of paired accuracies and its t interval."""
    (good, labels), (bad, _) = data(2.0), data(0.0)
    result = linear.compare({"bad": bad, "good": good}, labels, per_class=5, draws=6, penalty=1.0, seed=0)
    differences = np.subtract(result["good"]["few"], result["bad"]["few"])
    assert result["bad"]["difference"]["mean"] == pytest.approx(differences.mean())
    half = 2.5706 * differences.std(ddof=1) / np.sqrt(6)  # t(.975, 5)
    assert result["bad"]["difference"]["half_width"] == pytest.approx(half, rel=1e-4)
    assert result["good"]["difference"] is None and result["good"]["all"] > result["bad"]["all"]


def test_standardisation_never_sees_the_test_images():
    """Shifting test features by a constant must change predictions, not be absorbed."""
    (features, labels) = data(2.0)
    rows = np.arange(60)
    plain = linear.accuracy(features, labels, rows, penalty=1.0)
    shifted = linear.accuracy((features[0], features[1] + 50 * np.eye(5)[0]), labels, rows, penalty=1.0)
    assert plain > 0.8 and shifted < 0.5


def test_more_labels_than_there_are_is_refused():
    """Drawing with repeats would be another protocol."""
    with pytest.raises(ConfigError, match="labels_per_class 21, but class 0 has 20"):
        linear.draw_few(np.arange(60) % 3, 21, 1, seed=0)


def test_table_shows_every_row():
    """Means, difference with interval, all labels."""
    (features, labels) = data(2.0)
    result = linear.compare({"a": features, "b": features}, labels, per_class=5, draws=3, penalty=1.0, seed=0)
    text = linear.table(result, per_class=5, draws=3)
    assert "+0.0 ± 0.0" in text and "5 labels per class" in text and len(text.splitlines()) == 4
