"""Which labels are used: balanced, repeatable, never more than there are."""

import warnings

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
    drawn = [few.rows(LABELS, "5", seed=seed, draw=draw) for seed in (1, 2) for draw in (0, 1)]
    assert len({tuple(rows.tolist()) for rows in drawn}) == 4
    np.testing.assert_array_equal(few.rows(LABELS, "all", seed=0, draw=0), np.arange(100))


def test_a_share_is_of_each_class_and_at_least_one():
    """10 % of 50, 30 and 20; 8 % are 4, 2.4 and 1.6, so 4, 2 and 2; 1 % of each is one."""
    assert np.bincount(LABELS[few.rows(LABELS, "10%", seed=0, draw=0)]).tolist() == [5, 3, 2]
    assert np.bincount(LABELS[few.rows(LABELS, "8%", seed=0, draw=0)]).tolist() == [4, 2, 2]
    assert np.bincount(LABELS[few.rows(LABELS, "1%", seed=0, draw=0)]).tolist() == [1, 1, 1]


def test_a_file_lists_names_or_their_last_part(tmp_path):
    """As ImageNet's published lists do; a name that is missing, or several images', is refused with its number."""
    names = [f"n{label}/{i}.png" for i, label in enumerate(LABELS)]
    path = tmp_path / "one_percent.txt"
    path.write_text("7.png\n\nn1/55.png\n95.png\n")
    np.testing.assert_array_equal(few.rows(LABELS, str(path), seed=0, draw=0, names=names), [7, 55, 95])
    path.write_text("7.png\n95.png\n")
    with pytest.raises(ConfigError, match="2 images leave out 1 of 3 classes, such as 'b': no classifier"):
        few.rows(LABELS, str(path), seed=0, draw=0, names=names, class_names=["a", "b", "c"])
    path.write_text("7.png\nabsent.png\n")
    with pytest.raises(ConfigError, match=r"1 of its 2 names belong to no image, or to several, such as \['absent"):
        few.rows(LABELS, str(path), seed=0, draw=0, names=names)
    path.write_text("same.png\n")
    with pytest.raises(ConfigError, match="1 of its 1 names"):
        few.rows(LABELS, str(path), seed=0, draw=0, names=["a/same.png", "b/same.png"])
    with pytest.raises(ConfigError, match="have no names"):
        few.rows(LABELS, str(path), seed=0, draw=0)


@pytest.mark.parametrize("spec", ["5", "10%", "0"])
def test_a_number_is_a_number_whatever_files_there_are(tmp_path, monkeypatch, spec):
    """A file of that name in the current folder is taken by ./NAME alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / spec).write_text("7\n")
    names = [str(i) for i in range(100)]
    assert few.is_list(f"./{spec}") and not few.is_list(spec) and not few.is_list("./absent")
    (tmp_path / spec).write_text("7\n55\n95\n")
    np.testing.assert_array_equal(few.rows(LABELS, f"./{spec}", seed=0, draw=0, names=names), [7, 55, 95])
    if spec == "0":
        with pytest.raises(ConfigError, match="labels '0': it must be all, a number per class"):
            few.rows(LABELS, spec, seed=0, draw=0, names=names)
    else:
        assert len(few.rows(LABELS, spec, seed=0, draw=0, names=names)) in (15, 10)


@pytest.mark.parametrize("spec", ["", "0", "-1", "ten", "1.5", "0%", "101%", "all "])
def test_other_texts_are_refused(spec):
    """With the forms there are, or the bounds of a share."""
    with pytest.raises(ConfigError, match="labels '"):
        few.check(spec)
    with pytest.raises(ConfigError, match="labels '"):
        few.rows(LABELS, spec, seed=0, draw=0)


def test_a_file_that_is_no_list_is_called_so(tmp_path):
    """Empty, or no text."""
    path = tmp_path / "list.txt"
    path.write_text("\n")
    with pytest.raises(ConfigError, match="list.txt: the file names no image"):
        few.rows(LABELS, str(path), seed=0, draw=0, names=[str(i) for i in range(100)])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="list.txt is no text file"):
        few.rows(LABELS, str(path), seed=0, draw=0, names=[str(i) for i in range(100)])


def test_a_file_that_is_not_there_is_called_so():
    """A path and a slip of the pen need other help."""
    with pytest.raises(ConfigError, match="labels 'lists/1percent.txt': there is no file"):
        few.check("lists/1percent.txt")


def test_more_labels_than_there_are_is_refused():
    """Drawing with repeats, or fewer of one class, would be another protocol."""
    with pytest.raises(ConfigError, match="labels 21: class 2 has 20 train images"):
        few.rows(LABELS, "21", seed=0, draw=0)
    with pytest.raises(ConfigError, match="labels 21: class 'cow' has 20 train images"):
        few.rows(LABELS, "21", seed=0, draw=0, class_names=["ant", "bee", "cow"])


def test_what_is_held_out_is_alike_and_apart():
    """A fifth of each class; nothing on both sides and nothing lost."""
    kept, held = few.holdout(LABELS, None, 0.2, seed=0)
    assert np.bincount(LABELS[held]).tolist() == [10, 6, 4]
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(100))
    assert set(held) != set(few.holdout(LABELS, None, 0.2, seed=1)[1])
    assert few.holdout(LABELS, None, 0.0, seed=0)[1].size == 0


@pytest.mark.parametrize("share", [0.02, 0.2996, 0.3, 0.333, 0.4, 0.75, 0.97])
def test_the_share_is_kept_to_one_image(share):
    """Whatever it is, and however small a class: every class is on both sides, and in proportion but for an image."""
    labels = np.repeat([0, 1, 5], [700, 297, 3])
    kept, held = few.holdout(labels, None, share, seed=0)
    assert len(held) == round(share * 1000) and len(kept) + len(held) == 1000
    counts = np.bincount(labels[held])[[0, 1, 5]]
    assert 1 <= counts[2] <= 2 and (abs(counts - share * np.array([700, 297, 3])) < 2).all()


@pytest.mark.parametrize(("counts", "share", "taken"), [([19, 11, 10], 0.25, [5, 3, 2]), ([96, 2, 2], 0.03, [1, 1, 1])])
def test_what_is_left_of_an_image_goes_where_most_is_missing(counts, share, taken):
    """4.75, 2.75 and 2.5 are 5, 3 and 2; what a small class has too many, a large one has too few."""
    labels = np.repeat([0, 1, 2], counts)
    assert np.bincount(labels[few.holdout(labels, None, share, seed=0)[1]]).tolist() == taken


def test_a_class_that_cannot_be_on_both_sides_is_refused():
    """By its number where it has one image; by the shares that would do where there are more classes than places."""
    with pytest.raises(ConfigError, match="class 1 has 1 image, and one on each side"):
        few.holdout(np.array([0, 0, 1]), None, 0.5, seed=0)
    many = np.repeat(np.arange(10), 4)
    for share, taken in ((0.2, 8), (0.8, 32)):
        with pytest.raises(
            ConfigError, match=rf"of 40 images is {taken}, .* of 10 classes \(class 0 has 4\): .* from 0.25 to 0.75"
        ):
            few.holdout(many, None, share, seed=0)
    for share in (0.25, 0.75):
        assert set(np.bincount(many[few.holdout(many, None, share, seed=0)[1]])) == {round(4 * share)}


@pytest.mark.parametrize("share", [0.02, 0.2, 0.3, 0.4, 0.75])
def test_groups_are_held_out_whole(share):
    """No group on both sides, near to the share, classes alike; other groups by another seed."""
    labels, groups = np.tile(LABELS, 10), np.arange(1000) // 4
    kept, held = few.holdout(labels, groups, share, seed=0)
    assert not set(groups[kept]) & set(groups[held]) and len(kept) + len(held) == 1000
    assert abs(len(held) / 1000 - share) < 0.01
    np.testing.assert_allclose(np.bincount(labels[held]) / len(held), [0.5, 0.3, 0.2], atol=0.1)
    assert set(held) != set(few.holdout(labels, groups, share, seed=1)[1])


def test_groups_come_as_near_as_they_are_large():
    """Of three equal groups one is nearest to a fifth; of two none is, which is refused; so is all of them."""
    labels = np.tile([0, 1], 30)
    assert len(few.holdout(labels, np.arange(60) // 20, 0.2, seed=0)[1]) == 20
    for share, which in ((0.2, "none"), (0.8, "all")):
        with pytest.raises(ConfigError, match=f"2 of them, .* make 2 parts, and it is nearer to {which} of these"):
            few.holdout(labels, np.arange(60) // 30, share, seed=0)
    with pytest.raises(ConfigError, match="40 of them, with up to 4 images of a class, make 4 parts"):
        few.holdout(np.arange(40) % 10, np.arange(40), 0.05, seed=0)
    sizes = np.repeat(np.arange(5), [40, 15, 15, 15, 15])
    for seed in range(5):  # 15 of 100 are nearer to a fifth than 40 are
        assert len(few.holdout(np.arange(100) % 2, sizes, 0.2, seed=seed)[1]) == 15


def test_every_class_is_kept_where_groups_are_held_out():
    """One that a single group has is never set apart, by any seed, and nothing warns; two such groups are refused."""
    labels, groups = np.tile([0, 1], 50), np.arange(100) // 10
    labels[:3] = 2  # fewer than parts, of which scikit-learn would warn
    for seed in range(20):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kept, held = few.holdout(labels, groups, 0.2, seed=seed)
        assert set(labels[kept]) == {0, 1, 2} and len(held) == 20
    with pytest.raises(ConfigError, match="of 2 groups .* every class is kept: class 0 is in 1 of them"):
        few.holdout(np.repeat([0, 1], 10), np.repeat([0, 1], 10), 0.5, seed=0)


def test_the_digest_tells_draws_apart():
    """What is drawn, and in which draw."""
    a, b = np.array([1, 2]), np.array([3])
    same = few.digest([a, b]) == few.digest([np.array([1, 2], np.int32), b])
    assert same and len({few.digest(d) for d in ([a, b], [b, a], [a], [np.array([1, 2, 3])])}) == 4
