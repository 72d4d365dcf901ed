"""Weighted kNN against a loop in numpy and against scikit-learn's, exact ties included."""

import itertools
import re

import jax.numpy as jnp
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
    got = knn.classify(bank, labels, queries, classes=4, k=k, temperature=temperature)
    np.testing.assert_array_equal(got, oracle(bank, labels, queries, 4, k, temperature))


def scikit(bank, labels, queries, k, temperature, *, tie_break=False):
    """scikit-learn's classifier on unit features with the same weights, by cosine.

    It partitions distances, and so leaves open which of several equal neighbours vote. `tie_break` makes those first in
    the bank nearer by 1e-9, too little to be seen by the weights.
    """
    from sklearn.neighbors import KNeighborsClassifier

    def weights(distances):  # relative to the nearest, or equal votes of large weights would differ by rounding
        near = np.round(distances, 6) if tie_break else distances
        return np.exp((near.min(1, keepdims=True) - near) / temperature)

    if not tie_break:
        model = KNeighborsClassifier(k, weights=weights, algorithm="brute", metric="cosine")
        return model.fit(bank, labels).predict(queries)
    model = KNeighborsClassifier(k, weights=weights, metric="precomputed").fit(np.zeros((len(bank),) * 2), labels)
    return model.predict(1 - np.float64(queries @ bank.T) + 1e-9 * np.arange(len(bank)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (20, 0.07), (50, 0.1), (200, 1.0)])
def test_equals_scikit_learn(k, temperature, dtype, request):
    """Unit features of ten classes that overlap, none equally near, in float32 and in float64."""
    if dtype == np.float64:
        request.getfixturevalue("float64")
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 10, 300)
    bank = rng.normal(size=(300, 16)) + 2 * np.eye(10, 16)[labels]
    bank, queries = ((z / np.linalg.norm(z, axis=1, keepdims=True)).astype(dtype) for z in (bank, bank[::2] + 0.5))
    got = knn.classify(bank, labels, queries, classes=10, k=k, temperature=temperature)
    np.testing.assert_array_equal(got, scikit(bank, labels, queries, k, temperature))
    assert 0.2 < (got == labels[::2]).mean() <= 1.0
    assert len(set(got.tolist())) > 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 5, 12, 24])
def test_ties_go_to_the_first_in_the_bank_and_to_the_lowest_label(k, dtype, request):
    """Every query has 24 neighbours at exactly .5, of which k vote with equal weights: numpy and scikit-learn agree.

    The bank is (±.5, ±.5, ±.5, ±.5) three times over, the queries are ± the axes: products are exact in any precision.
    """
    if dtype == np.float64:
        request.getfixturevalue("float64")
    rng = np.random.default_rng(4)
    bank = rng.permutation(np.array(list(itertools.product((-0.5, 0.5), repeat=4)) * 3)).astype(dtype)
    queries = np.concatenate([np.eye(4), -np.eye(4)]).astype(dtype)
    labels = rng.integers(0, 3, len(bank))
    assert ((queries @ bank.T == 0.5).sum(1) == 24).all()
    got = knn.classify(bank, labels, queries, classes=3, k=k, temperature=0.1)
    np.testing.assert_array_equal(got, oracle(bank, labels, queries, 3, k, 0.1))
    np.testing.assert_array_equal(got, scikit(bank, labels, queries, k, 0.1, tie_break=True))
    if k == 24:  # all that are equally near vote, so that scikit-learn has nothing to choose either
        np.testing.assert_array_equal(got, scikit(bank, labels, queries, k, 0.1))
    votes = [np.bincount(labels[np.flatnonzero(q @ bank.T == 0.5)[:k]]) for q in queries]
    assert k == 1 or any((v == v.max()).sum() > 1 for v in votes)  # classes tie, too


def test_every_product_is_in_full_precision():
    """On GPU and TPU a product that does not say so rounds its factors to TF32 or bfloat16."""
    near, labels, index = jnp.zeros((2, 2)), jnp.zeros((2, 2), jnp.int32), jnp.zeros((2, 2), jnp.int32)
    vote = knn._vote.lower(near, labels, classes=3, temperature=0.1).as_text()
    merged = knn._merged.lower(near, index, jnp.zeros((8, 4)), jnp.zeros((2, 4)), 8, 0, k=2).as_text()
    for text in (vote, merged):
        products = re.findall(r"dot_general.*", text)
        assert len(products) == 1 and all("precision = [HIGHEST, HIGHEST]" in p for p in products)


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (16, 24), (8, 3), (100, 1000)])
def test_chunks_change_nothing(rows, columns):
    """Neither of the bank nor of the queries, smaller than k or not dividing; ties across chunks go to the first."""
    rng = np.random.default_rng(4)
    bank = rng.permutation(np.array(list(itertools.product((-0.5, 0.5), repeat=4)) * 3)).astype(np.float32)
    queries = np.concatenate([np.eye(4), -np.eye(4), np.ones((3, 4)) / 2]).astype(np.float32)
    found = knn.nearest(bank, queries, k=12, rows=rows, columns=columns)
    similarity = queries @ bank.T
    wanted = np.argsort(-similarity, axis=1, kind="stable")[:, :12]
    np.testing.assert_array_equal(found.place, wanted)
    np.testing.assert_array_equal(found.similarity, np.take_along_axis(similarity, wanted, axis=1))


def test_the_first_of_many_neighbours_are_those_of_fewer():
    """So that one search answers every k."""
    rng = np.random.default_rng(0)
    bank, labels = rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 3, 40)
    queries = rng.normal(size=(9, 6)).astype(np.float32)
    found = knn.nearest(bank, queries, k=20)
    for k in (1, 7, 20):
        voted = knn.vote(found, labels, classes=3, k=k, temperature=0.1)
        np.testing.assert_array_equal(voted, knn.classify(bank, labels, queries, classes=3, k=k, temperature=0.1))
        np.testing.assert_array_equal(voted, oracle(bank, labels, queries, 3, k, 0.1))


def test_memory_is_that_of_a_chunk_whatever_the_bank():
    """1.3 million features of 2,048 take what 65,536 take, and no less than the compiler plans for a call."""
    needed = knn.memory(width=64, classes=10, k=20, rows=32, columns=500)
    shapes = (jnp.zeros((32, 20)), jnp.zeros((32, 20), jnp.int32), jnp.zeros((500, 64)), jnp.zeros((32, 64)))
    plan = knn._merged.lower(*shapes, 500, 0, k=20).compile().memory_analysis()
    planned = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    assert 0.5 * planned < needed < 3 * planned
    assert knn.memory(width=2048, classes=1000, k=200, rows=256, columns=65536) < 2 * 2**30


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
