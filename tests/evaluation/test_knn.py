"""Weighted kNN against a loop in numpy and against scikit-learn's, exact ties included."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.config import ConfigError
from moco_jax.evaluation import knn


def cosines(bank, queries):
    unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)  # noqa: E731
    return unit(queries) @ unit(bank).T


def oracle(bank, labels, queries, classes, k, temperature):
    out = []
    for row in cosines(bank, queries):
        votes = np.zeros(classes)
        for i in np.argsort(-row, kind="stable")[:k]:
            votes[labels[i]] += np.exp(row[i] / temperature)
        out.append(votes.argmax())
    return np.array(out)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.1), (20, 0.07), (20, 1.0)])
def test_equals_the_formula(k, temperature):
    """Clustered features; the last chunks of queries and of the bank are not full."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    bank = rng.normal(size=(60, 6)).astype(np.float32) + np.eye(6, dtype=np.float32)[labels]
    queries = rng.normal(size=(37, 6)).astype(np.float32)
    found = knn.nearest(bank, queries, k=20, rows=16, columns=25)  # one search answers every k
    got = knn.vote(found, labels, classes=4, k=k, temperature=temperature)
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


CHUNKS = [(256, 65536), (16, 48), (3, 16), (5, 13), (8, 7)]  # in one; even; smaller than k; uneven; many times smaller


@pytest.mark.parametrize(("rows", "columns"), CHUNKS)
def test_chunks_do_not_matter_to_ties(rows, columns):
    """Every query has 24 neighbours at exactly .5 and 24 at -.5: the first 30 are those of a stable sort in numpy."""
    rng = np.random.default_rng(4)
    bank = rng.permutation(np.array(list(itertools.product((-0.5, 0.5), repeat=4)) * 3)).astype(np.float32)
    queries = np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32)
    found = knn.nearest(bank, queries, k=30, rows=rows, columns=columns)
    similarity = queries @ bank.T
    wanted = np.argsort(-similarity, axis=1, kind="stable")[:, :30]
    np.testing.assert_array_equal(found.place, wanted)
    np.testing.assert_array_equal(found.similarity, np.take_along_axis(similarity, wanted, axis=1))


@pytest.mark.parametrize(("rows", "columns"), CHUNKS)
def test_chunks_do_not_matter_to_features(rows, columns):
    """No two are equally near: places as in float64 numpy, cosines to 1e-6 (measured 2.1e-7).

    All are negative, so that padding, were it compared as zeros, would win.
    """
    rng = np.random.default_rng(2)
    bank, queries = 1 + rng.random((53, 9)).astype(np.float32), -1 - rng.random((11, 9)).astype(np.float32)
    similarity = cosines(bank.astype(np.float64), queries.astype(np.float64))
    assert similarity.max() < 0 and np.diff(np.sort(similarity, axis=1)).min() > 1e-6
    found = knn.nearest(bank, queries, k=53, rows=rows, columns=columns)
    wanted = np.argsort(-similarity, axis=1)
    np.testing.assert_array_equal(found.place, wanted)
    np.testing.assert_allclose(found.similarity, np.take_along_axis(similarity, wanted, axis=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("count", "most", "size"), [(10, 100, 10), (100, 100, 100), (101, 100, 51), (7, 3, 3)])
def test_chunks_are_even(count, most, size):
    """One image more than a chunk takes does not double the work."""
    assert knn.even(count, most) == size


def held(compiled):
    plan = compiled.memory_analysis()
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes


@pytest.mark.parametrize(
    ("width", "classes", "k", "rows", "columns", "moment"),
    [(2048, 1000, 200, 256, 65536, 0), (128, 10, 20, 256, 65536, 1), (64, 1000, 200, 16, 1000, 2)],
)
def test_memory_is_what_is_compiled(width, classes, k, rows, columns, moment):
    """Each of the three moments once the largest: ImageNet's by a bank of any size, the head's, many classes.

    To the byte, but for a few scalars (measured: 16 bytes). Comparing takes less on a CPU, which selects where a GPU
    sorts: measured a 3.7th of what is predicted.
    """
    shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)  # noqa: E731
    before = shape(rows, k), shape(rows, k, dtype=jnp.int32)
    near = shape(knn.QUERIES, k), shape(knn.QUERIES, k, dtype=jnp.int32)
    moments = [
        held(knn._unit.lower(shape(columns, width)).compile()),
        held(knn._merged.lower(*before, shape(columns, width), shape(rows, width), 5, 0, k=k).compile()),
        held(knn._vote.lower(*near, classes=classes, temperature=0.1).compile()),
    ]
    predicted = knn.memory(width=width, classes=classes, k=k, rows=rows, columns=columns)
    assert np.argmax(moments) == moment
    if moment == 1:
        assert 2 * moments[1] < predicted < 4 * moments[1]
    else:
        assert abs(predicted - moments[moment]) <= 64


def test_no_more_than_one_chunk_is_on_the_device(monkeypatch):
    """Between calls nothing of an earlier chunk, nor of the queries, is held: the prediction leaves them out."""
    held_before = sum(a.nbytes for a in jax.live_arrays())
    seen = {"_unit": [], "_merged": []}

    def listening(function, peaks):
        def heard(*args, **named):
            peaks.append(sum(a.nbytes for a in jax.live_arrays()) - held_before)
            return function(*args, **named)

        return heard

    for name, peaks in seen.items():
        monkeypatch.setattr(knn, name, listening(getattr(knn, name), peaks))
    bank, queries = np.ones((400, 8), np.float32), np.ones((6, 8), np.float32)
    knn.nearest(bank, queries, k=2, rows=3, columns=100)
    assert seen == {"_unit": [0] * 4, "_merged": [100 * 8 * 4] * 8}


def test_every_product_is_in_full_precision():
    """On GPU and TPU a product that does not say so rounds its factors to TF32 or bfloat16."""
    near = jnp.zeros((2, 4)), jnp.zeros((2, 4), jnp.int32)
    text = knn._vote.lower(*near, classes=3, temperature=0.1).as_text()
    text += knn._merged.lower(*near, jnp.zeros((8, 5)), jnp.zeros((2, 5)), 8, 0, k=4).as_text()
    products = re.findall(r"dot_general.*", text)
    assert len(products) == 2 and all("precision = [HIGHEST, HIGHEST]" in p for p in products)


def test_weights_matter():
    """Two far neighbours of class 1 lose against one near of class 0, unless T flattens the weights."""
    bank = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    queries = np.array([[1.0, 0.3]], np.float32)
    labels = np.array([0, 1, 1])
    assert knn.classify(bank, labels, queries, classes=2, k=3, temperature=0.1)[0] == 0
    assert knn.classify(bank, labels, queries, classes=2, k=3, temperature=100.0)[0] == 1


def test_more_neighbours_than_images_is_refused():
    """top_k would fail with a shape; this says what to write."""
    with pytest.raises(ConfigError, match="k 4 neighbours, but the bank holds 3 images; use k 3 or less"):
        knn.classify(np.ones((3, 2)), np.zeros(3), np.ones((1, 2)), classes=1, k=4, temperature=0.1)
