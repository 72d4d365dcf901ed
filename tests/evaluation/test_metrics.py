"""Numbers of a classifier against loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from moco_jax.evaluation import metrics


def test_numbers_equal_loops():
    """Seven classes, of which the test images hold six."""
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(80, 7)), rng.integers(0, 6, 80)
    found = metrics.of(scores, labels, 7)
    predicted = scores.argmax(1)
    assert found["top1"] == (predicted == labels).mean() and found["count"] == 80
    assert found["top5"] == np.mean([label in np.argsort(-row)[:5] for row, label in zip(scores, labels, strict=True)])
    assert found["per_class"][2] == (predicted[labels == 2] == 2).mean() and found["per_class"][6] is None
    assert found["balanced_accuracy"] == pytest.approx(np.mean(found["per_class"][:6]))
    assert found["confusion"][1][3] == ((labels == 1) & (predicted == 3)).sum()
    assert found["auroc"] is None


def test_two_classes_have_an_auroc_and_no_top5():
    """Of the difference of the scores."""
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(50, 2)), rng.integers(0, 2, 50)
    found = metrics.of(scores, labels, 2)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores[:, 1] - scores[:, 0])) and found["top5"] is None
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert metrics.of(scores, np.zeros(50, int), 2)["auroc"] is None


def test_the_lowest_label_wins_a_tie():
    """As in argmax; and all five first ones are in the top five."""
    found = metrics.of(np.zeros((6, 6)), np.arange(6), 6)
    assert found["top1"] == pytest.approx(1 / 6) and found["top5"] == pytest.approx(5 / 6)


def test_the_summary_names_the_worst_classes():
    """By name, worst first; names in quotes, as a class 8 with 0.0 % would be read as a number."""
    scores = np.eye(3)[[0, 1, 1, 1]]
    found = metrics.of(scores, np.array([0, 1, 2, 1]), 3)
    text = metrics.summary(found, ["cat", "dog", "emu"])
    assert "balanced 66.67%" in text and text.index("'emu' 0.0%") < text.index("'cat' 100.0%")
    assert metrics.summary(found, ["0", "1", "8"]).endswith("worst classes '8' 0.0%, '0' 100.0%, '1' 100.0%")
