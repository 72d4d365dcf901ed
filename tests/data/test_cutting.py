"""Crops from the host and crops from canvases: the same views, whatever size images are."""

import gc
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import views
from moco_jax.data import crops, cutting, loader, order
from moco_jax.data.crops import Box
from moco_jax.data.sources import ArraySource
from moco_jax.views.recipes import RECIPES

SIZE, SIDE, ROWS = 8, 24, 16
RECIPE = RECIPES["moco_v2"]
SIZES = [(20, 24), (24, 17), (16, 16), (9, 30), (60, 50), (200, 41), (24, 25), (7, 5)]  # some larger than a canvas


def images(dtype=np.uint8, channels=3):
    """Smooth pictures with noise, so that a crop that is off by a pixel shows."""
    rng, out = np.random.default_rng(0), []
    for height, width in SIZES:
        ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None] * np.arange(1, channels + 1)
        picture = (ramp + rng.integers(0, 60, (height, width, channels))) % 251
        out.append((picture * (200 if dtype == np.uint16 else 1)).astype(dtype))
    return out


def batch_of(stored, canvas, pairs=order.same_record):
    made = loader.batches(
        ArraySource(stored),
        [view.crop for view in RECIPE],
        path="streamed",
        seed=3,
        batch_size=len(stored),
        positions=np.arange(len(stored)),
        first_step=5,
        last_step=6,
        size=SIZE,
        workers=1,
        pairs=pairs,
        canvas=canvas,
    )
    return next(iter(made))


def raw_of(batch, channels=3):
    """The raw views that the device makes of a batch."""
    values = {"low": 0.0, "high": 255.0, "mean": (0.5,) * channels, "std": (0.5,) * channels}
    made = views.make(RECIPE, size=SIZE, dtype=jnp.float32, **values)
    return jax.jit(lambda b: made.raw(b, {}, jnp.arange(len(b["ids"])), jax.random.key(0)))(batch)


def other(ids, draws):
    """A pair rule: the second view shows the next record."""
    return np.stack([ids, (ids + 1) % len(SIZES)], axis=1)


@pytest.mark.parametrize("pairs", [order.same_record, other])
@pytest.mark.parametrize(("dtype", "step"), [(np.uint8, 1), (np.uint16, 1), (np.float32, 1e-4)])
def test_a_canvas_gives_the_views_that_the_host_cuts(dtype, step, pairs):
    """To rounding: one step of the storage dtype, not often; a record for both views or one for each."""
    stored = images(dtype)
    host, device = batch_of(stored, 0, pairs), batch_of(stored, SIDE, pairs)
    assert len(device["canvas"]) == (1 if pairs is order.same_record else 2)
    assert all(a.shape == (len(SIZES), SIDE, SIDE, 3) and a.dtype == dtype for a in device["canvas"])
    np.testing.assert_array_equal(host["ids"], device["ids"])
    for ours, theirs in zip(host["raw"], raw_of(device), strict=True):
        assert theirs.dtype == ours.dtype and ours.std() > 10
        gap = np.abs(np.asarray(theirs, np.float64) - ours)
        assert gap.max() <= step and (gap > 0).mean() < (1.0 if dtype == np.float32 else 0.1)


def test_what_is_not_covered_is_nothing_that_spoils_a_sum():
    """A canvas of floats is finite everywhere, as 0 times what is not finite is not 0."""
    stored = [np.ones((9, 9, 1), np.float32)] * 8
    for _ in range(3):
        np.full(8 * SIDE * SIDE, np.nan, np.float32)  # what the next array may be made of
        assert np.isfinite(batch_of(stored, SIDE)["canvas"][0]).all()


def test_memory_is_used_again_when_nobody_looks_at_it():
    """Also not by a view, nor on the device, to which nothing may be copied on CPU."""
    memory = cutting.Memory((4, 5), np.dtype(np.uint16))

    def place_of(array):
        return array.__array_interface__["data"][0]

    whole = memory.array()
    first = place_of(whole)
    whole[:] = 7
    rows = whole[1:]
    del whole
    other = memory.array()
    assert place_of(other) != first and (rows == 7).all()
    on_device = jax.device_put(rows.reshape(-1))
    del rows
    held = [memory.array() for _ in range(3)]
    for array in held:
        array[:] = 1
    assert (np.asarray(on_device) == 7).all()
    del on_device
    later = [memory.array()]
    for _ in range(200):  # JAX lets go when it comes to it
        if place_of(later[-1]) == first:
            break
        gc.collect()
        time.sleep(0.05)
        later.append(memory.array())
    assert place_of(later[-1]) == first
    assert cutting.Memory((3,), np.dtype(np.float32)).array().tolist() == [0, 0, 0]


def test_only_what_the_crops_cover_is_copied():
    """So an image larger than the canvas goes as it is, where its crops lie together."""
    image = np.arange(100 * 100, dtype=np.uint16).reshape(100, 100, 1)
    canvas = np.full((SIDE, SIDE, 1), 7, np.uint16)
    placed = cutting.place(image, [Box(70, 40, 10, 20), Box(75, 45, 19, 12)], canvas, SIZE)
    assert placed == [Box(0, 0, 10, 20), Box(5, 5, 19, 12)]
    np.testing.assert_array_equal(canvas[:24, :20], image[70:94, 40:60])
    assert (canvas[:, 20:] == 7).all()


def test_crops_that_lie_too_far_apart_are_cut_here():
    """And stand side by side, at the size of a view, where cutting changes nothing."""
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    boxes, canvas = [Box(0, 0, 30, 30), Box(60, 60, 40, 25)], np.zeros((SIDE, SIDE, 3), np.uint8)
    placed = cutting.place(image, boxes, canvas, SIZE)
    assert placed == [Box(0, 0, SIZE, SIZE), Box(0, SIZE, SIZE, SIZE)]
    for box, there in zip(boxes, placed, strict=True):
        found = canvas[: there.height, there.left : there.left + there.width]
        np.testing.assert_array_equal(found, crops.random_resized_crop(image, box, SIZE))
