"""Views of images on the device: crop to raw views in the storage dtype, then augment to normalised floats."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from moco_jax.config import ConfigError
from moco_jax.views import augment, crop, geometry, recipes

OPS: dict[type, Callable[..., jax.Array]] = {
    recipes.Grayscale: augment.random_grayscale,
    recipes.ColorJitter: augment.random_color_jitter,
    recipes.GaussianBlur: augment.random_gaussian_blur,
    recipes.Solarize: augment.random_solarize,
    recipes.BandGain: augment.random_band_gain,
    recipes.ChannelDrop: augment.random_channel_drop,
    recipes.HorizontalFlip: geometry.random_horizontal_flip,
    recipes.VerticalFlip: geometry.random_vertical_flip,
    recipes.Affine: geometry.random_affine,
}


class Views(NamedTuple):
    """A recipe as functions. `positions` (n,) int32 are rows of the global batch; `key` is of one step and purpose.

    Every draw comes from (key, position, view), so that a row gets the same view wherever it is computed.
    """

    count: int  # type: ignore[assignment]  # V; hides tuple.count
    raw: Callable[..., tuple[jax.Array, ...]]  # (batch, data, positions, key) -> V times (n, S, S, C), storage dtype
    augment: Callable[..., jax.Array]  # (x (n, S, S, C), positions, key, view: int) -> (n, S, S, C) normalised


def make(
    recipe: recipes.Recipe,
    *,
    size: int,
    low: float,
    high: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: Any,
) -> Views:
    """The views of a recipe at `size` pixels, for data whose stored values low..high mean 0..1; result in `dtype`.

    mean and std hold one number per channel. Raises ConfigError for what the recipe cannot do to that many channels.
    """
    recipes.check(recipe, len(mean))
    for op in (op for view in recipe for op in view.ops):
        if type(op) not in OPS:
            raise ConfigError(f"a recipe holds {op!r}; operations are: {', '.join(t.__name__ for t in OPS)}")

    def raw(batch: Any, data: Any, positions: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        """Crops cut on the host as they are; else of canvases, or of the resident images (records, H, W, C)."""
        if "raw" in batch:
            return batch["raw"]
        if "canvas" in batch:
            images, boxes = batch["canvas"], batch["boxes"]  # one canvas for all views, or one for each
            return tuple(cut(images[min(v, len(images) - 1)], boxes[:, v]) for v in range(len(recipe)))
        return tuple(crops(v, data["images"][batch["ids"][:, v]], positions, key) for v in range(len(recipe)))

    @jax.vmap
    def cut(image: jax.Array, box: jax.Array) -> jax.Array:
        return crop.crop_and_resize(image, crop.Box(*box), size)

    def crops(view: int, images: jax.Array, positions: jax.Array, key: jax.Array) -> jax.Array:
        how = recipe[view].crop

        def one(image: jax.Array, position: jax.Array) -> jax.Array:
            mine = _fold(key, position, view)
            return crop.random_resized_crop(mine, image, scale=how.scale, ratio=how.ratio, size=size)

        return jax.vmap(one)(images, positions)

    def augmented(x: jax.Array, positions: jax.Array, key: jax.Array, view: int) -> jax.Array:
        whole = x.dtype == jnp.uint8 and (low, high) == (0, augment.WHITE)  # as PIL holds them

        def one(image: jax.Array, position: jax.Array) -> jax.Array:
            mine = _fold(key, position, view)
            image = image.astype(_wide(dtype)) if whole else _unit_range(image, low, high, dtype)
            for i, op in enumerate(recipe[view].ops):
                image = OPS[type(op)](random.fold_in(mine, i), image, **dataclasses.asdict(op), whole=whole)
            return _unit_range(image, low, high, dtype) if whole else image

        return _normalised(jax.vmap(one)(x, positions), mean, std).astype(dtype)

    return Views(len(recipe), raw, augmented)


def standardise(
    x: jax.Array, *, low: float, high: float, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any
) -> jax.Array:
    """What an augmented view is without augmentation, for evaluation: (n, S, S, C) storage -> (n, S, S, C) `dtype`."""
    return _normalised(_unit_range(jnp.asarray(x), low, high, dtype), mean, std).astype(dtype)


def _fold(key: jax.Array, position: jax.Array, view: int) -> jax.Array:
    return random.fold_in(random.fold_in(key, position), view)


def _unit_range(x: jax.Array, low: float, high: float, dtype: Any) -> jax.Array:
    """Stored values as floats, low..high mapped to 0..1."""
    return (x.astype(_wide(dtype)) - low) / (high - low)


def _wide(dtype: Any) -> jnp.dtype:
    """The dtype that views are computed in."""
    return jnp.promote_types(dtype, jnp.float32)


def _normalised(x: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    if len(mean) != x.shape[-1] or len(std) != x.shape[-1]:
        raise ConfigError(
            f"data.mean holds {len(mean)} numbers and data.std {len(std)}, but the images have {x.shape[-1]} channels; "
            "give one number per channel"
        )
    shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
    return (x - np.reshape(np.asarray(mean, x.dtype), shape)) / np.reshape(np.asarray(std, x.dtype), shape)
