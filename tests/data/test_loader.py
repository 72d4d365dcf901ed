"""The loader: whole batches per step wherever it starts and however hosts share it, errors that name the record."""

import functools
import threading
from typing import NamedTuple

import numpy as np
import pytest

from moco_jax.config import ConfigError
from moco_jax.data import crops, loader, order, sources, tfds

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (6 + i % 5, 9, 3), dtype=np.uint8) for i in range(23)]  # of several sizes


class Crop(NamedTuple):
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


CROPS = (Crop((0.2, 1.0)), Crop((0.5, 0.6)))
ARGUMENTS = {"path": "streamed", "seed": 5, "batch_size": 8, "positions": np.arange(8), "size": 4, "workers": 2}


class Broken(sources.ArraySource):
    """One record that cannot be read."""

    def __getitem__(self, index):
        if index == 13:
            raise OSError("image file is truncated")
        return super().__getitem__(index)


def stream(first, last, source=None, **changes):
    source = source or sources.ArraySource(IMAGES)
    return loader.batches(source, CROPS, first_step=first, last_step=last, **{**ARGUMENTS, **changes})


def assert_same(a, b):
    np.testing.assert_array_equal(a["ids"], b["ids"])
    assert len(a["raw"]) == len(b["raw"]) == 2
    for x, y in zip(a["raw"], b["raw"], strict=True):
        np.testing.assert_array_equal(x, y)


def test_batches_hold_the_crops_of_their_records():
    """Row r of view v is record ids[r, v], cut by the box of (seed, step, position, view) and its own crop."""
    (batch,) = stream(3, 4)
    ids = order.ids(5, 3, np.arange(8), records=23, batch_size=8)
    np.testing.assert_array_equal(batch["ids"], ids)
    for view, crop in enumerate(CROPS):
        assert batch["raw"][view].shape == (8, 4, 4, 3) and batch["raw"][view].dtype == np.uint8
        for row in range(8):
            image = IMAGES[ids[row, view]]
            box = crops.draw_box(crops.words(5, 3, [row], 2)[0, view], *image.shape[:2], *crop)
            np.testing.assert_array_equal(batch["raw"][view][row], crops.random_resized_crop(image, box, 4))


def test_views_of_a_pair_come_from_their_own_records():
    """With a pair rule, view 1 is cut from the partner."""
    rule = lambda ids, draws: np.stack([ids, (ids + 5) % 20], axis=1)  # noqa: E731
    flat = sources.ArraySource([np.full((6, 6, 1), i, np.uint8) for i in range(23)])
    (batch,) = stream(0, 1, source=flat, pairs=rule)
    for view in range(2):
        np.testing.assert_array_equal(batch["raw"][view][:, 0, 0, 0], batch["ids"][:, view])
    assert (batch["ids"][:, 0] != batch["ids"][:, 1]).all()


def test_starting_late_changes_nothing():
    """Steps 3 to 6 are the same from an iterator that began at 0 and one that begins at 3, over epochs' ends."""
    whole, late = list(stream(0, 7)), list(stream(3, 7))
    assert (len(whole), len(late)) == (7, 4)
    for a, b in zip(whole[3:], late, strict=True):
        assert_same(a, b)
    assert (whole[0]["ids"] != whole[2]["ids"]).any()  # two steps per epoch: the first of the next


def test_hosts_and_threads_change_nothing():
    """Two hosts with half of the positions each, and any number of threads, make the same global batches in order."""
    whole = list(stream(0, 5))
    halves = [list(stream(0, 5, positions=p, workers=w)) for p, w in ((np.arange(4), 1), (np.arange(4, 8), 4))]
    for batch, a, b in zip(whole, *halves, strict=True):
        joined = {"ids": np.concatenate([a["ids"], b["ids"]])}
        joined["raw"] = tuple(np.concatenate(pair) for pair in zip(a["raw"], b["raw"], strict=True))
        assert_same(batch, joined)


def test_another_seed_draws_other_crops():
    """The seed reaches order and boxes."""
    (a,), (b,) = stream(0, 1), stream(0, 1, seed=6)
    assert (a["ids"] != b["ids"]).any()
    one = sources.ArraySource([IMAGES[4]] * 23)
    (a,), (b,) = stream(0, 1, source=one), stream(0, 1, source=one, seed=6)
    assert (a["raw"][0] != b["raw"][0]).any()


def test_resident_path_sends_ids_only():
    """The host sends ids, and reads no image at all."""
    ids = [batch["ids"] for batch in stream(0, 3)]
    for batch, expected in zip(stream(0, 3, source=Broken([None] * 23), path="resident"), ids, strict=True):
        assert list(batch) == ["ids"]
        np.testing.assert_array_equal(batch["ids"], expected)


@pytest.mark.parametrize("path", ["resident", "streamed"])
def test_what_is_behind_the_queue_is_spread_over_the_rows(path, monkeypatch):
    """K = 21 over 8 rows are 3 each, the last filled up by -1; hosts hold parts, and a late start changes nothing.

    A step computes its own ids alone: those of the steps behind the queue are kept.
    """
    ring, calls = order.Ring(21, (0, 1)), []
    ids = functools.partial(order.ids, 5, positions=np.arange(8), records=23, batch_size=8)
    count = lambda *a, **k: calls.append(a[1]) or order_ids(*a, **k)  # noqa: E731
    order_ids, _ = order.ids, monkeypatch.setattr(order, "ids", count)
    whole = list(stream(0, 9, ring=ring, path=path, workers=1))
    assert sorted(calls) == list(range(9))
    monkeypatch.undo()
    for step, batch in enumerate(whole):
        assert batch["queue_ids"].shape == (8, 3) and batch["queue_ids"].dtype == np.int32
        expected = order.queue_ids(step, ring, lambda s: ids(step=s), batch_size=8)
        np.testing.assert_array_equal(batch["queue_ids"].reshape(-1), np.append(expected, [-1] * 3))
        np.testing.assert_array_equal(batch["ids"], ids(step=step))
    late = list(stream(6, 9, ring=ring, path=path))
    halves = [list(stream(6, 9, ring=ring, path=path, positions=p)) for p in (np.arange(4), np.arange(4, 8))]
    for batch, other, a, b in zip(whole[6:], late, *halves, strict=True):
        np.testing.assert_array_equal(other["queue_ids"], batch["queue_ids"])
        np.testing.assert_array_equal(np.concatenate([a["queue_ids"], b["queue_ids"]]), batch["queue_ids"])


def test_errors_in_threads_name_the_record():
    """A record that cannot be read stops the iteration in the consumer, with source, record and reason."""
    with pytest.raises(OSError, match="arrays: record 13 cannot be read: OSError: image file is truncated"):
        list(stream(0, 3, source=Broken(IMAGES)))
    with pytest.raises(OSError, match="record 13 cannot be read"):
        loader.resident(Broken([IMAGES[0]] * 23), 2)
    mixed = sources.ArraySource([*IMAGES[:22], IMAGES[22][..., :1]])
    with pytest.raises(ConfigError, match="record 22 has 1 channel and record 0 3 channels"):
        list(stream(0, 4, source=mixed))


def test_stopping_early_ends_the_threads():
    """Closing the iterator, finishing it and failing in it leave no thread behind."""
    before = threading.enumerate()
    for use in (lambda i: (next(i), i.close()), list):
        use(stream(0, 100 if use is not list else 3))
    with pytest.raises(sources.ReadError):
        list(stream(0, 3, source=Broken(IMAGES)))
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith("grain-prefetch")]
    for thread in left:
        thread.join(2)
    assert not any(thread.is_alive() for thread in left)


@pytest.mark.parametrize("workers", [1, 3])
def test_resident_holds_every_image_in_place(workers, monkeypatch):
    """All images in their order and dtype, several tasks per thread."""
    monkeypatch.setattr(loader, "CHUNK", 4)
    images = RNG.integers(0, 65536, (23, 5, 6, 2), dtype=np.uint16)
    found = loader.resident(sources.ArraySource(images), workers)
    assert list(found) == ["images"] and found["images"].dtype == np.uint16
    np.testing.assert_array_equal(found["images"], images)


def test_resident_digits(digits_dir):
    """The default data set, as the default run holds it."""
    source = tfds.open_source("digits", "train[1200:]", data_dir=digits_dir)
    images = loader.resident(source, 2)["images"]
    assert images.shape == (300, 8, 8, 1)
    np.testing.assert_array_equal(images[-1], source[299])


def test_loader_refuses():
    """Different sizes cannot be resident; an unknown path, no worker, too few images are told before next."""
    with pytest.raises(ConfigError, match=r"record 1 is 7x9 pixels and record 0 6x9; .* data\.path='streamed'"):
        loader.resident(sources.ArraySource(IMAGES), 1)
    with pytest.raises(ConfigError, match=r"data\.path 'streamd' is unknown; did you mean 'streamed'"):
        stream(0, 1, path="streamd")
    for call in (lambda: stream(0, 1, workers=0), lambda: loader.resident(sources.ArraySource(IMAGES[:1]), 0)):
        with pytest.raises(ConfigError, match=r"data\.workers must be 1 or more, not 0"):
            call()
    with pytest.raises(ConfigError, match="batch_size 24 does not fit 23 images"):
        stream(0, 1, batch_size=24)
