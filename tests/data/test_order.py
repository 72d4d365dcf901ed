"""The order of records: a permutation per epoch, the same however positions are spread, different for another seed."""

import itertools

import numpy as np
import pytest

from moco_jax.config import ConfigError
from moco_jax.data import order

RECORDS, BATCH = 103, 10  # ten steps per epoch, three records left out
ALL = np.arange(BATCH)


def epoch_ids(seed, epoch):
    return np.concatenate(
        [order.ids(seed, epoch * 10 + s, ALL, records=RECORDS, batch_size=BATCH)[:, 0] for s in range(10)]
    )


def test_each_record_at_most_once_per_epoch():
    """100 of the 103 records appear, once each, and both views are of the same record."""
    for epoch in range(3):
        assert len(set(epoch_ids(0, epoch).tolist())) == 100
    pairs = order.ids(0, 7, ALL, records=RECORDS, batch_size=BATCH)
    assert pairs.shape == (BATCH, 2) and pairs.dtype == np.int32
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])


def test_every_epoch_is_another_permutation_and_leaves_out_others():
    """Epochs differ in order and in the tail, so that in the long run every image is seen."""
    epochs = [epoch_ids(0, e) for e in range(20)]
    assert all((a != b).mean() > 0.8 for a, b in itertools.pairwise(epochs))
    assert len({tuple(sorted(set(range(RECORDS)) - set(e.tolist()))) for e in epochs}) > 15
    assert set(np.concatenate(epochs).tolist()) == set(range(RECORDS))


def test_another_seed_is_another_order():
    """Seeds give unrelated orders, neighbours and the largest included; the same seed gives the same."""
    orders = [epoch_ids(seed, 0) for seed in (0, 1, 2, 2**32 - 1)]
    for i, a in enumerate(orders):
        assert all((a != b).mean() > 0.8 for b in orders[i + 1 :])
    np.testing.assert_array_equal(orders[1], epoch_ids(1, 0))
    assert (epoch_ids(0, 1) != epoch_ids(1, 0)).mean() > 0.8  # seed and epoch do not add up


def test_permutation_is_uniform_enough():
    """Over 400 epochs a record's first position is spread evenly: no record is favoured by the shuffle."""
    first = [order.ids(s, 0, np.array([0]), records=16, batch_size=1)[0, 0] for s in range(400)]
    assert np.bincount(first, minlength=16).min() > 8  # 25 expected, standard deviation 5


def test_hosts_hold_parts_of_the_same_batch():
    """However positions are split, each row's records and draws are those of the whole batch, pair rule included."""

    def neighbour(ids, draws):
        return np.stack([ids, (ids + draws % 5) % RECORDS], axis=1).astype(np.int64)

    kwargs = {"records": RECORDS, "batch_size": BATCH, "pairs": neighbour}
    whole = order.ids(3, 12, ALL, **kwargs)
    for parts in ([ALL[:5], ALL[5:]], [ALL[::2], ALL[1::2]], [ALL[:1], ALL[1:9], ALL[9:], ALL[:0]]):
        for positions in parts:
            np.testing.assert_array_equal(order.ids(3, 12, positions, **kwargs), whole[positions])


GROUPS = np.array([5, 9, 5, 2, 5, 9, 5, 5, 7, 5])  # in the source's order: 5 holds 0 2 4 6 7 9, 9 holds 1 5
MEMBERS = {5: [0, 2, 4, 6, 7, 9], 9: [1, 5], 2: [3], 7: [8]}


def partners(max_gap, rows=6000):
    """(rows,) records and their partners by the rule, from the order's own draws."""
    ids = np.arange(rows) % len(GROUPS)
    found = order.same_group(GROUPS, max_gap)(ids.astype(np.int32), order.draws(3, 1, np.arange(rows)))
    np.testing.assert_array_equal(found[:, 0], ids)
    return found.T


@pytest.mark.parametrize("max_gap", [None, 1, 2, 9])
def test_a_partner_is_another_of_the_group_within_reach_and_all_are_as_likely(max_gap):
    """Places are those of the group's own records in order; never the record itself, unless it is alone."""
    ids, found = partners(max_gap)
    for record in range(len(GROUPS)):
        members = MEMBERS[GROUPS[record]]
        place = members.index(record)
        reach = [m for i, m in enumerate(members) if m != record and abs(i - place) <= (max_gap or 99)] or [record]
        counts = np.bincount(found[ids == record], minlength=len(GROUPS))
        assert set(np.flatnonzero(counts)) == set(reach)
        expected = 600 / len(reach)
        assert (abs(counts[reach] - expected) < 5 * np.sqrt(expected) * (len(reach) > 1) + 1e-9).all()


def test_a_group_rule_gives_every_host_the_same_partners():
    """Through `ids`: 1, 2 and 4 hosts, in turn or in blocks."""
    rule = order.same_group(np.arange(RECORDS) // 7, 3)
    kwargs = {"records": RECORDS, "batch_size": 8, "pairs": rule}
    whole = order.ids(3, 5, np.arange(8), **kwargs)
    assert (whole[:, 0] != whole[:, 1]).all() and (abs(whole[:, 0] - whole[:, 1]) <= 3).all()
    for hosts in (2, 4):
        for parts in (np.arange(8).reshape(hosts, -1), np.arange(8).reshape(-1, hosts).T):
            for positions in parts:
                np.testing.assert_array_equal(order.ids(3, 5, positions, **kwargs), whole[positions])
    assert order.alone(np.array([4, 4, 1, 0, 9])) == (3, 4)


@pytest.mark.parametrize(("size", "views"), [(10, (1,)), (25, (1,)), (37, (0, 1)), (20, (0, 1)), (200, (1,))])
def test_queue_ids_are_those_of_a_queue_that_stores_them(size, views):
    """A list of records, key by key, over an epoch's end; K that the keys do not divide, and K above all."""

    def batch(step):
        pairs = order.same_group(np.arange(RECORDS) // 4, None)
        return order.ids(1, step, ALL, records=RECORDS, batch_size=BATCH, pairs=pairs)

    stored = [-1] * size  # the newest first
    for step in range(13):
        found = order.queue_ids(step, order.Ring(size, views), batch, batch_size=BATCH)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, stored)
        for record in (r for view in views for r in batch(step)[:, view]):
            stored = [record, *stored[:-1]]


def test_draws_are_random_words():
    """Bits of a draw are fair, and no word repeats over positions, steps and seeds."""
    words = np.concatenate(
        [order.draws(seed, step, np.arange(100)) for seed in (0, 1, 2**32 - 1) for step in range(20)]
    )
    assert words.dtype == np.uint64 and len(set(words.tolist())) == len(words)
    ones = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).mean(0)
    assert abs(ones - 0.5).max() < 0.05  # standard deviation .0065


def test_order_is_what_checkpoints_count_on():
    """Known values: a run that is resumed under another version must meet the records it would have met."""
    found = order.ids(42, 25, np.arange(4), records=1000, batch_size=8)[:, 0]
    assert found.tolist() == GOLDEN_IDS, "the order changed: every checkpoint would go on with other images"
    assert order.draws(42, 25, np.arange(2)).tolist() == GOLDEN_DRAWS


GOLDEN_IDS = [702, 506, 207, 991]
GOLDEN_STAND_INS = [883, 86, 223, 622]
GOLDEN_DRAWS = [13203326312423805863, 2817725494848009957]


def test_stand_ins_are_what_checkpoints_count_on():
    """Known values, as for the order: a resumed run shows the same images in the place of bad files."""
    assert list(itertools.islice(order.stand_ins(7, 1000), 4)) == GOLDEN_STAND_INS


def test_neighbours_have_other_stand_ins():
    """Every record goes through all of them once, in an order of its own: a bad folder is not one image."""
    orders = [list(order.stand_ins(record, 50)) for record in range(50)]
    assert all(sorted(found) == list(range(50)) for found in orders)
    assert len({found[0] for found in orders}) > 20  # 32 expected of 50 independent ones


def test_a_stand_in_comes_from_the_same_group_where_there_is_one():
    """From the nearest on, by the group's own order; then all of a group go the same way, and others another."""
    groups = np.array([5, 1, 5, 5, 1, 5, 0, 0])
    for record, nearest in ((3, [3, 2, 5, 0]), (0, [0, 2, 3, 5]), (4, [4, 1]), (6, [6, 7])):
        found = list(order.stand_ins(record, 8, groups))
        assert found[: len(nearest)] == nearest and sorted(found[len(nearest) :]) == list(range(8))
    rest = {record: tuple(order.stand_ins(record, 8, groups))[-8:] for record in range(8)}
    assert rest[0] == rest[2] == rest[3] == rest[5] != rest[1] == rest[4]


def test_steps_per_epoch():
    """Whole batches only; no batch at all is an error with both numbers."""
    assert [order.steps_per_epoch(r, 10) for r in (10, 19, 20)] == [1, 1, 2]
    with pytest.raises(ConfigError, match="batch_size 11 does not fit 10 images; use 1 to 10"):
        order.steps_per_epoch(10, 11)
    with pytest.raises(ConfigError, match="batch_size 0"):
        order.steps_per_epoch(10, 0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda ids, draws: ids, r"returned int32 \(10,\) for 10 rows; return integers \(10, 2\)"),
        (lambda ids, draws: np.stack([ids, ids, ids], 1), r"\(10, 3\)"),
        (lambda ids, draws: np.stack([ids, ids], 1) / 1.0, "float64"),
        (lambda ids, draws: np.stack([ids, ids + RECORDS], 1), "there are 0 to 102"),
        (lambda ids, draws: np.stack([ids, -1 - ids], 1), "records -"),
    ],
)
def test_bad_pair_rule_is_refused(rule, message):
    """A pair rule of the wrong shape, dtype or range is told so, with what it returned."""
    with pytest.raises(ConfigError, match=message):
        order.ids(0, 0, ALL, records=RECORDS, batch_size=BATCH, pairs=rule)
