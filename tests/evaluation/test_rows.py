"""Columns of a transfer table by hand: neighbours, penalties, pixels, and what its intervals count."""

import dataclasses

import numpy as np
import pytest

from moco_jax.data import crops
from moco_jax.evaluation import intervals, logistic, rows, transfer
from moco_jax.evaluation.features import extract
from moco_jax.protocols import Transfer
from tests.evaluation import small

SETTINGS = Transfer(labels=("5",), draws=3, k=5, temperature=0.2, finetune=False)


@pytest.fixture
def bench(monkeypatch):
    """A run's encoder and labelled images."""
    return small.Bench(monkeypatch)


def question_of(bench, **changes):
    return transfer._question(dataclasses.replace(SETTINGS, **changes), {"runs/a": bench.load("a")}, print)


def noisy(source):
    """Features (N, 4) that tell the label now and then, so that settings matter."""
    labels = source.labels()
    return (np.random.default_rng(len(labels)).normal(size=(len(labels), 4)) + 0.7 * np.eye(4)[labels]).astype("f4")


def voted(features, labels, *, k, temperature):
    """Which queries (Q,) a vote of the k most similar, each weighted by exp(similarity / T), gets right."""
    bank, queries = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in map(np.float64, features))
    similarity = queries @ bank.T  # (Q, M)
    right = []
    for row, label in zip(similarity, labels[1], strict=True):
        near = np.argsort(-row)[:k]
        votes = np.bincount(labels[0][near], weights=np.exp(row[near] / temperature), minlength=3)
        right.append(votes.argmax() == label)
    return np.array(right)


def test_neighbours_vote_as_the_settings_say(bench):
    """By numpy; with one neighbour more or less, or with T turned over, other images are right."""
    question = question_of(bench)
    right = rows.of_features(question, noisy)[rows.KNN].right(0, print)
    splits = question.pair.train, question.pair.test
    features, labels = [noisy(split.source) for split in splits], [split.labels for split in splits]
    np.testing.assert_array_equal(right, voted(features, labels, k=5, temperature=0.2))
    for k, temperature in ((6, 0.2), (4, 0.2), (5, 1 / 0.2), (5, 0.1)):
        assert (right != voted(features, labels, k=k, temperature=temperature)).any()


def test_neighbours_of_an_encoder_are_those_of_its_backbone(bench):
    """As a row of the table asks them: extracted features, untouched."""
    question, encoder = question_of(bench), bench.load("a").trained
    right = rows.of_features(question, lambda source: rows.encoded(question, encoder, source))[rows.KNN].right(0, print)
    splits = question.pair.train, question.pair.test
    found = [extract(encoder, split.source, batch_size=32, workers=1) for split in splits]
    labels = [split.labels for split in splits]
    np.testing.assert_array_equal(right, voted([f["backbone"] for f in found], labels, k=5, temperature=0.2))
    assert (right != voted([f["head"] for f in found], labels, k=5, temperature=0.2)).any()


def test_linear_columns_have_the_penalty_asked_for(bench):
    """With all labels and with few: other images are right than by the penalty of 1."""
    question = question_of(bench, penalty=0.001)
    columns, draws = rows.of_features(question, noisy), question.draws()
    splits = question.pair.train, question.pair.test
    features, labels = [noisy(split.source) for split in splits], [split.labels for split in splits]
    for name, ending in (("linear", ""), ("linear, 5 per class", ", 5 per class")):
        for draw, drawn in enumerate(draws[ending]):
            right = columns[name].right(draw, print)
            np.testing.assert_array_equal(right, logistic.correct(features, labels, drawn, penalty=0.001))
            assert (right != logistic.correct(features, labels, drawn, penalty=1.0)).any()


@pytest.mark.parametrize(("side", "resized", "cut"), [(4, 6, 4), (8, 12, 8), (32, 12, 8)])
def test_pixels_are_centre_views_of_at_most_that_side(bench, side, resized, cut):
    """Views of 8 cut from 12: to 4 from 6 where that is the limit; as they are where the limit is no smaller."""
    encoder = bench.load("a").trained
    encoder = encoder._replace(preprocessing=encoder.preprocessing._replace(size=8, resize=12))
    source = bench.splits["test"]
    found = rows.pixels(question_of(bench, pixels=side), encoder, source)
    views = [crops.center(source[i], resize=resized, size=cut) for i in range(len(source))]
    assert found.shape == (30, cut * cut) and found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack(views).reshape(30, -1))


def test_intervals_of_a_table_count_groups(bench):
    """Five images of a patient are right or wrong together: shares and differences are those of six patients."""
    bench.splits["test"] = small.source(30, 1, "test", groups=np.arange(30) // 5)
    question = question_of(bench)
    groups, patients = question.pair.test.groups, np.arange(30) // 5
    ours, theirs = (patients % 3 > 0)[None], (patients % 2 > 0)[None]
    found = {"pixels": {rows.KNN: theirs}, "a": {rows.KNN: ours}}
    of_groups = dict(transfer._table(question, found, reference="a").rows)
    alone = question._replace(pair=question.pair._replace(test=question.pair.test._replace(groups=None)))
    of_images = dict(transfer._table(alone, found, reference="a").rows)
    wide, narrow = of_groups["pixels"][0], of_images["pixels"][0]
    assert wide.half_width > 2 * narrow.half_width and wide.half_width == intervals.share(theirs, groups).half_width
    assert wide.difference["half_width"] > 2 * narrow.difference["half_width"]
    assert wide.difference == intervals.difference(ours, theirs, groups)._asdict()
    assert wide.mean == narrow.mean and wide.difference["mean"] == narrow.difference["mean"]
