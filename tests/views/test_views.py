"""Recipes as functions of a batch: what a draw depends on, which storage fits, and what evaluation sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import views
from moco_jax.config import ConfigError
from moco_jax.views import recipes
from moco_jax.views.recipes import Crop, HorizontalFlip, ViewRecipe

LIMITS = {"uint8": (0.0, 255.0), "uint16": (100.0, 4095.0), "float32": (-1.0, 3.0)}


def make(name, channels, *, storage="uint8", size=8, dtype=jnp.float32):
    low, high = LIMITS[storage]
    return views.make(
        recipes.get(name, channels),
        size=size,
        low=low,
        high=high,
        mean=(0.4,) * channels,
        std=(0.2,) * channels,
        dtype=dtype,
    )


def images(n, channels, *, storage="uint8", size=12):
    low, high = LIMITS[storage]
    values = low + (high - low) * np.random.default_rng(0).random((n, size, size, channels))
    return jnp.asarray(values.astype(storage))


def whole_path(made, positions):
    """(batch, data, key) -> raw views and augmented views, of all V views."""

    def both(batch, data, key):
        raw = made.raw(batch, data, positions, key)
        return raw, tuple(made.augment(x, positions, key, v) for v, x in enumerate(raw))

    return both


IDS = jnp.array([[0, 1], [2, 2], [4, 3]], jnp.int32)
FITS = [
    ("moco_v1", 3),
    ("moco_v2", 3),
    ("moco_v3", 3),
    ("cifar_demo", 3),
    ("digits", 1),
    ("digits", 3),
    ("xray", 1),
    ("xray", 2),
    ("bands", 2),
    ("bands", 13),
]


@pytest.mark.parametrize("storage", sorted(LIMITS))
@pytest.mark.parametrize(("name", "channels"), FITS)
def test_every_recipe_keeps_shapes_and_types(name, channels, storage):
    """Raw views keep the storage dtype, augmented ones have the compute dtype, for every recipe and every storage."""
    made = make(name, channels, storage=storage)
    both = whole_path(made, jnp.arange(3, dtype=jnp.int32))
    x = images(5, channels, storage=storage)
    raw, augmented = jax.eval_shape(both, {"ids": IDS}, {"images": x}, jax.random.key(0))
    assert made.count == len(raw) == len(augmented) == 2
    assert {(a.shape, a.dtype) for a in raw} == {((3, 8, 8, channels), x.dtype)}
    assert {(a.shape, a.dtype) for a in augmented} == {((3, 8, 8, channels), jnp.dtype("float32"))}


@pytest.mark.parametrize(
    ("name", "channels", "storage"),
    [("moco_v2", 3, "uint8"), ("bands", 13, "uint16"), ("xray", 1, "float32"), ("digits", 1, "uint16")],
)
def test_values_from_storage_to_network(name, channels, storage):
    """Crops stay within the stored values, and before normalisation every augmented view lies in 0..1."""
    made = make(name, channels, storage=storage)
    x = images(5, channels, storage=storage)
    both = jax.jit(whole_path(made._replace(augment=lambda x, p, k, v: made.augment(x, p, k, 0)), jnp.arange(3)))
    raw, augmented = both({"ids": IDS}, {"images": x}, jax.random.key(0))
    for crops, y in zip(raw, augmented, strict=True):
        assert float(x.min()) <= float(crops.min()) < float(crops.max()) <= float(x.max())
        unit = np.asarray(y) * 0.2 + 0.4
        assert -1e-5 <= unit.min() < unit.max() <= 1 + 1e-5
        assert 0.1 < unit.mean() < 0.65


def test_a_row_takes_its_draws_along():
    """Rows permuted together with their positions give permuted views: draws know positions, never places."""
    made, x = make("digits", 1), images(6, 1, size=8)
    positions, key = jnp.arange(6, dtype=jnp.int32) + 10, jax.random.key(1)
    order = np.array([3, 0, 5, 1, 4, 2])
    augment = jax.jit(made.augment, static_argnums=3)
    plain = augment(x, positions, key, 1)
    np.testing.assert_allclose(augment(x[order], positions[order], key, 1), plain[order], atol=1e-5)
    part = augment(x[2:4], positions[2:4], key, 1)  # another batch size, as on another number of devices
    np.testing.assert_allclose(part, plain[2:4], atol=1e-5)

    ids = jnp.stack([jnp.arange(6), jnp.arange(6)], axis=1)
    raw = jax.jit(made.raw)
    moved = raw({"ids": ids[order]}, {"images": x}, positions[order], key)
    for a, b in zip(moved, raw({"ids": ids}, {"images": x}, positions, key), strict=True):
        np.testing.assert_array_equal(a, b[order])


def test_draws_differ_by_key_position_and_view():
    """The same image at another step, in another row or in the other view is another picture; else the very same."""
    made = make("digits", 1)
    x = jnp.broadcast_to(images(1, 1, size=8), (4, 8, 8, 1))
    augment = jax.jit(made.augment, static_argnums=3)
    positions, key, another = jnp.arange(4, dtype=jnp.int32), jax.random.key(2), jax.random.key(3)
    first = augment(x, positions, key, 0)
    np.testing.assert_array_equal(first, augment(x, positions, key, 0))
    rest = (augment(x, positions, another, 0), augment(x, positions + 4, key, 0), augment(x, positions, key, 1))
    assert len({row.tobytes() for batch in (first, *rest) for row in np.asarray(batch)}) == 16

    raw, batch = jax.jit(made.raw), {"ids": jnp.zeros((4, 2), jnp.int32)}
    data = {"images": images(1, 1, size=32)}
    crops = [*raw(batch, data, positions, key), *raw(batch, data, positions, another)]
    assert len({row.tobytes() for view in crops for row in np.asarray(view)}) == 16


def test_equal_operations_of_a_recipe_draw_apart():
    """Two flips in a row do not cancel each other: every operation folds in its own place in the recipe."""
    recipe = (ViewRecipe(Crop((1.0, 1.0), (1.0, 1.0)), (HorizontalFlip(0.5), HorizontalFlip(0.5))),)
    made = views.make(recipe, size=4, low=0, high=1, mean=(0.0,), std=(1.0,), dtype=jnp.float32)
    x = jnp.broadcast_to(jnp.arange(16.0).reshape(1, 4, 4, 1), (64, 4, 4, 1))
    out = jax.jit(made.augment, static_argnums=3)(x, jnp.arange(64, dtype=jnp.int32), jax.random.key(0), 0)
    flipped = np.asarray(jnp.any(out != x, axis=(1, 2, 3)))
    assert 16 < flipped.sum() < 48


def test_operations_run_in_the_recipes_order():
    """With probabilities of 1, gray after a tint is another picture than gray before, which has no colour to tint."""
    gray, tint = recipes.Grayscale(1.0), recipes.ColorJitter(0.0, 0.0, 0.9, 0.5, 1.0)
    x, positions, out = images(2, 3, size=6), jnp.arange(2, dtype=jnp.int32), []
    for ops in ((gray,), (gray, tint), (tint, gray)):
        recipe = (ViewRecipe(Crop((1.0, 1.0)), ops),)
        made = views.make(recipe, size=6, low=0, high=255, mean=(0.0,) * 3, std=(1.0,) * 3, dtype=jnp.float32)
        out.append(np.asarray(jax.jit(made.augment, static_argnums=3)(x, positions, jax.random.key(0), 0)))
    np.testing.assert_allclose(out[1], out[0], atol=1e-5)
    assert np.abs(out[2] - out[0]).max() > 0.05


def test_only_plain_8_bit_images_are_rounded():
    """Where stored bytes mean 0..255 levels stay whole, as in PIL; other ranges and other types are never rounded."""
    recipe = (ViewRecipe(Crop((1.0, 1.0)), (recipes.ColorJitter(0.9, 0.0, 0.0, 0.0, 1.0),)),)
    for storage, high, rounded in (("uint8", 255, True), ("uint8", 250, False), ("uint16", 255, False)):
        made = views.make(recipe, size=8, low=0, high=high, mean=(0.0,), std=(1.0,), dtype=jnp.float32)
        x = (images(4, 1, size=8) // 8).astype(storage)
        out = jax.jit(made.augment, static_argnums=3)(x, jnp.arange(4, dtype=jnp.int32), jax.random.key(0), 0)
        levels = np.asarray(out) * high
        assert bool(np.abs(levels - np.round(levels)).max() < 1e-4) is rounded, (storage, high)


def test_resident_views_are_crops_of_the_records_named():
    """View v of a row shows record ids[row, v]: with the whole image as crop, exactly its pixels."""
    whole = ViewRecipe(Crop((1.0, 1.0), (1.0, 1.0)), ())
    made = views.make((whole, whole), size=12, low=0, high=255, mean=(0.0,), std=(1.0,), dtype=jnp.float32)
    data = {"images": images(5, 1)}
    ids = jnp.array([[4, 0], [1, 3]], jnp.int32)
    raw = jax.jit(made.raw)({"ids": ids}, data, jnp.arange(2, dtype=jnp.int32), jax.random.key(0))
    for view in range(2):
        np.testing.assert_array_equal(raw[view], data["images"][ids[:, view]])


def test_streamed_views_pass_untouched():
    """What the host has cropped is returned as it is, whatever the resident data."""
    raw = (images(2, 3, size=8), images(2, 3, size=8))
    made = make("moco_v2", 3)
    out = made.raw({"ids": jnp.zeros((2, 2), jnp.int32), "raw": raw}, {}, jnp.arange(2), jax.random.key(0))
    assert all(a is b for a, b in zip(out, raw, strict=True))


@pytest.mark.parametrize("storage", sorted(LIMITS))
def test_evaluation_sees_an_unaugmented_view(storage):
    """`standardise` is plain arithmetic per band, and what `augment` gives with no operations."""
    low, high = LIMITS[storage]
    x = images(2, 3, storage=storage, size=8)
    values = {"low": low, "high": high, "mean": (0.1, 0.4, 0.7), "std": (0.2, 0.3, 0.5)}
    out = views.standardise(x, **values, dtype=jnp.float32)
    expected = ((np.asarray(x, np.float64) - low) / (high - low) - (0.1, 0.4, 0.7)) / (0.2, 0.3, 0.5)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)
    made = views.make((ViewRecipe(Crop((1.0, 1.0)), ()),), size=8, **values, dtype=jnp.float32)
    np.testing.assert_array_equal(made.augment(x, jnp.arange(2), jax.random.key(0), 0), out)
    np.testing.assert_array_equal(views.standardise(np.asarray(x), **values, dtype=jnp.float32), out)


def augmented(dtype):
    """Three augmented digits in a compute dtype."""
    made = make("digits", 1, dtype=dtype)
    arguments = images(3, 1, size=8), jnp.arange(3, dtype=jnp.int32), jax.random.key(0)
    return jax.jit(made.augment, static_argnums=3)(*arguments, 0)


def test_compute_dtype_only_rounds_the_result():
    """In bfloat16 the arithmetic stays float32 and only the normalised view is rounded."""
    half, full = augmented(jnp.bfloat16), augmented(jnp.float32)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))


def test_double_precision_reaches_the_end(float64):
    """With dtype float64 views are float64, and equal the float32 ones to rounding: the same draws."""
    wide, narrow = augmented(jnp.float64), augmented(jnp.float32)
    assert (wide.dtype, narrow.dtype) == (jnp.float64, jnp.float32)
    np.testing.assert_allclose(wide, narrow, rtol=0, atol=1e-4)
    made = make("digits", 1, dtype=jnp.float64)
    arguments = images(3, 1, size=8), jnp.arange(3, dtype=jnp.int32), jax.random.key(0)
    program = str(jax.make_jaxpr(made.augment, static_argnums=3)(*arguments, 0))
    assert "f64[3,8,8" in program
    assert "f32[3,8,8" not in program


def test_what_does_not_fit_is_refused():
    """A user's own recipe meets the same checks as a named one, and one number does not stand for three bands."""
    rest = {"size": 8, "low": 0, "high": 255, "dtype": jnp.float32}
    with pytest.raises(ConfigError, match="the given recipe uses ColorJitter.hue.*have 4"):
        views.make(recipes.RECIPES["moco_v2"], mean=(0.5,) * 4, std=(0.5,) * 4, **rest)
    with pytest.raises(ConfigError, match="the given recipe uses ChannelDrop, which needs 2 channels or more.*have 1"):
        views.make(recipes.RECIPES["bands"], mean=(0.5,), std=(0.5,), **rest)
    with pytest.raises(ConfigError, match="operations are: Grayscale"):
        views.make((ViewRecipe(Crop((0.5, 1.0)), ("flip",)),), mean=(0.5,), std=(0.5,), **rest)
    with pytest.raises(ConfigError, match="one number per channel"):
        views.standardise(images(1, 3), low=0, high=255, mean=(0.5,), std=(0.5,), dtype=jnp.float32)
