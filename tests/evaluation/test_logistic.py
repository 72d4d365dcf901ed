"""The linear table: paired draws, honest intervals, one text."""

import numpy as np
import pytest

from moco_jax.config import ConfigError
from moco_jax.evaluation import logistic


def data(signal, seed=0):
    rng = np.random.default_rng(seed)
    labels = (np.arange(60) % 3, np.arange(45) % 3)
    make = lambda y: rng.normal(size=(len(y), 5)) + signal * np.eye(5)[y]  # noqa: E731
    return (make(labels[0]), make(labels[1])), labels


def test_draws_are_balanced_repeatable_and_without_repeats():
    """`per_class` rows of each class in every draw; the same seed draws the same."""
    labels = np.arange(60) % 3
    draws = logistic.draw_few(labels, 4, 5, seed=1)
    assert len(draws) == 5 and all(np.bincount(labels[d]).tolist() == [4, 4, 4] for d in draws)
    assert all(len(set(d)) == 12 for d in draws)
    np.testing.assert_array_equal(draws[3], logistic.draw_few(labels, 4, 5, seed=1)[3])
    assert set(draws[0]) != set(draws[1])


def test_compares_the_last_row_with_each_other_over_the_same_draws():
    """Mean difference of paired accuracies and its t interval."""
    (good, labels), (bad, _) = data(2.0), data(0.0)
    result = logistic.compare({"bad": bad, "good": good}, labels, per_class=5, draws=6, penalty=1.0, seed=0)
    differences = np.subtract(result["good"]["few"], result["bad"]["few"])
    assert result["bad"]["difference"]["mean"] == pytest.approx(differences.mean())
    half = 2.5706 * differences.std(ddof=1) / np.sqrt(6)  # t(.975, 5)
    assert result["bad"]["difference"]["half_width"] == pytest.approx(half, rel=1e-4)
    assert result["good"]["difference"] is None and result["good"]["all"] > result["bad"]["all"]


def test_standardisation_never_sees_the_test_images():
    """Shifting test features by a constant must change predictions, not be absorbed."""
    (features, labels) = data(2.0)
    rows = np.arange(60)
    plain = logistic.accuracy(features, labels, rows, penalty=1.0)
    shifted = logistic.accuracy((features[0], features[1] + 50 * np.eye(5)[0]), labels, rows, penalty=1.0)
    assert plain > 0.8 and shifted < 0.5


def test_more_labels_than_there_are_is_refused():
    """Drawing with repeats would be another protocol."""
    with pytest.raises(ConfigError, match="labels_per_class 21, but class 0 has 20"):
        logistic.draw_few(np.arange(60) % 3, 21, 1, seed=0)


def test_table_shows_every_row():
    """Means, difference with interval, all labels."""
    (features, labels) = data(2.0)
    result = logistic.compare({"a": features, "b": features}, labels, per_class=5, draws=3, penalty=1.0, seed=0)
    text = logistic.table(result, per_class=5, draws=3)
    assert "+0.0 ± 0.0" in text and "5 labels per class" in text and len(text.splitlines()) == 4


def test_the_same_features_under_two_names_are_judged_by_the_same_draws():
    """Paired: every draw serves every row, so equal features leave no difference at all."""
    (features, labels) = data(0.7)
    result = logistic.compare({"a": features, "b": features}, labels, per_class=5, draws=6, penalty=1.0, seed=0)
    assert result["a"]["few"] == result["b"]["few"] and len(set(result["a"]["few"])) > 1
    assert result["a"]["difference"] == {"mean": 0.0, "half_width": 0.0}
    drawn = logistic.draw_few(labels[0], 5, 6, 0)
    assert result["a"]["few"] == [logistic.accuracy(features, labels, rows, penalty=1.0) for rows in drawn]


def test_all_is_the_accuracy_with_every_train_image():
    """Not with as many as there are test images, and not with those of a draw."""
    for signal in (0.3, 0.7):
        (features, labels) = data(signal)
        (row,) = logistic.compare({"a": features}, labels, per_class=5, draws=2, penalty=0.5, seed=0).values()
        assert row["all"] == logistic.accuracy(features, labels, np.arange(60), penalty=0.5)
        assert row["all"] != logistic.accuracy(features, labels, np.arange(45), penalty=0.5)


def test_all_leaves_out_neither_the_first_nor_the_last_image():
    """Each is the only one of its class, which a classifier that never saw it cannot name."""
    labels = (np.array([0, 1, 1, 1, 2]), np.array([0, 1, 2]))
    (row,) = logistic.compare(
        {"a": tuple(np.eye(3)[y] for y in labels)}, labels, per_class=1, draws=2, penalty=100.0, seed=0
    ).values()
    assert row["all"] == 1.0


def test_a_small_penalty_is_a_strong_one():
    """scikit-learn's C: at 1e-6 weights vanish and the common class is always guessed, at 1e6 nothing holds them."""
    train, test = np.arange(60) % 3 // 2, np.arange(40) % 2  # 40 of class 0 and 20 of class 1; half and half
    features = tuple(np.where(y == 1, 1.0, -1.0)[:, None] for y in (train, test))
    rows = np.arange(60)
    assert logistic.accuracy(features, (train, test), rows, penalty=1e6) == 1.0
    assert logistic.accuracy(features, (train, test), rows, penalty=1e-6) == 0.5
    for penalty, right in ((1e6, 1.0), (1e-6, 0.5)):
        (row,) = logistic.compare(
            {"a": features}, (train, test), per_class=5, draws=2, penalty=penalty, seed=0
        ).values()
        assert row["all"] == right
