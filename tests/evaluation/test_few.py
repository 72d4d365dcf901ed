"""Which labels are used: balanced, repeatable, never more than there are."""

import numpy as np
import pytest

from moco_jax.config import ConfigError
from moco_jax.evaluation import few

LABELS = np.repeat([0, 1, 2], [50, 30, 20])


def test_a_number_is_drawn_of_each_class():
    """As many of each, without repeats, rising; the same by (seed, draw), others by another of either."""
    rows = few.rows(LABELS, "5", seed=1, draw=0)
    assert np.bincount(LABELS[rows]).tolist() == [5, 5, 5] and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, few.rows(LABELS, "5", seed=1, draw=0))
    assert set(rows) != set(few.rows(LABELS, "5", seed=1, draw=1)) != set(few.rows(LABELS, "5", seed=2, draw=0))
    np.testing.assert_array_equal(few.rows(LABELS, "all", seed=0, draw=0), np.arange(100))


def test_a_share_is_of_each_class_and_at_least_one():
    """10 % of 50, 30 and 20; 1 % of each is one."""
    assert np.bincount(LABELS[few.rows(LABELS, "10%", seed=0, draw=0)]).tolist() == [5, 3, 2]
    assert np.bincount(LABELS[few.rows(LABELS, "1%", seed=0, draw=0)]).tolist() == [1, 1, 1]


def test_a_file_lists_names_or_their_last_part(tmp_path):
    """As ImageNet's published lists do; a name that is missing, or several images', is refused with its number."""
    names = [f"n{label}/{i}.png" for i, label in enumerate(LABELS)]
    path = tmp_path / "one_percent.txt"
    path.write_text("7.png\n\nn1/55.png\n")
    np.testing.assert_array_equal(few.rows(LABELS, str(path), seed=0, draw=0, names=names), [7, 55])
    path.write_text("7.png\nabsent.png\n")
    with pytest.raises(ConfigError, match=r"1 of its 2 names belong to no image, or to several, such as \['absent"):
        few.rows(LABELS, str(path), seed=0, draw=0, names=names)
    path.write_text("same.png\n")
    with pytest.raises(ConfigError, match="1 of its 1 names"):
        few.rows(LABELS, str(path), seed=0, draw=0, names=["a/same.png", "b/same.png"])
    with pytest.raises(ConfigError, match="have no names"):
        few.rows(LABELS, str(path), seed=0, draw=0)


@pytest.mark.parametrize("spec", ["", "0", "-1", "ten", "1.5", "0%", "101%", "all "])
def test_other_texts_are_refused(spec):
    """With the forms there are, or the bounds of a share."""
    with pytest.raises(ConfigError, match="labels '"):
        few.rows(LABELS, spec, seed=0, draw=0)


def test_more_labels_than_there_are_is_refused():
    """Drawing with repeats, or fewer of one class, would be another protocol."""
    with pytest.raises(ConfigError, match="labels 21: class 2 has 20 train images"):
        few.rows(LABELS, "21", seed=0, draw=0)


def test_what_is_held_out_is_alike_and_apart():
    """A fifth of each class; nothing on both sides and nothing lost."""
    kept, held = few.holdout(LABELS, None, 0.2, seed=0)
    assert np.bincount(LABELS[held]).tolist() == [10, 6, 4]
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(100))
    assert set(held) != set(few.holdout(LABELS, None, 0.2, seed=1)[1])
    assert few.holdout(LABELS, None, 0.0, seed=0)[1].size == 0


def test_groups_are_held_out_whole():
    """No group on both sides."""
    groups = np.arange(100) // 4
    kept, held = few.holdout(LABELS, groups, 0.2, seed=0)
    assert not set(groups[kept]) & set(groups[held]) and 10 <= len(held) <= 30
    with pytest.raises(ConfigError, match="takes 5 groups or more, and there are 2"):
        few.holdout(LABELS, np.arange(100) // 50, 0.2, seed=0)
    with pytest.raises(ConfigError, match="the smallest class has 1 images"):
        few.holdout(np.array([0, 0, 1]), None, 0.5, seed=0)
