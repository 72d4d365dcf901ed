"""Weighted kNN against a loop in numpy."""

import numpy as np
import pytest

from moco_jax.config import ConfigError
from moco_jax.evaluation import knn


def oracle(bank, labels, queries, classes, k, temperature):
    unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)  # noqa: E731
    similarity = unit(queries) @ unit(bank).T
    out = []
    for row in similarity:
        votes = np.zeros(classes)
        for i in np.argsort(-row, kind="stable")[:k]:
            votes[labels[i]] += np.exp(row[i] / temperature)
        out.append(votes.argmax())
    return np.array(out)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.1), (20, 0.07), (20, 1.0)])
def test_equals_the_formula(k, temperature):
    """Clustered features; the last chunk of queries is not full."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    bank = rng.normal(size=(60, 6)).astype(np.float32) + np.eye(6, dtype=np.float32)[labels]
    queries = rng.normal(size=(37, 6)).astype(np.float32)
    got = knn.classify(bank, labels, queries, classes=4, k=k, temperature=temperature, chunk=16)
    np.testing.assert_array_equal(got, oracle(bank, labels, queries, 4, k, temperature))


def test_weights_matter():
    """Two far neighbours of class 1 lose against one near of class 0, unless T flattens the weights."""
    bank = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    queries = np.array([[1.0, 0.3]], np.float32)
    labels = np.array([0, 1, 1])
    assert knn.classify(bank, labels, queries, classes=2, k=3, temperature=0.1)[0] == 0
    assert knn.classify(bank, labels, queries, classes=2, k=3, temperature=100.0)[0] == 1


def test_more_neighbours_than_images_is_refused():
    """top_k would fail with a shape; this says what to write."""
    with pytest.raises(ConfigError, match="eval.k 4 neighbours, but the bank holds 3"):
        knn.classify(np.ones((3, 2)), np.zeros(3), np.ones((1, 2)), classes=1, k=4, temperature=0.1)
