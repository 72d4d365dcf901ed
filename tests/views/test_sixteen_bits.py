"""A 16-bit image from its file to the network's input: no value is lost, none changes places with another."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from moco_jax import views
from moco_jax.data import crops, pixels
from moco_jax.views.recipes import Crop, ViewRecipe

SIDE = 256
RAMP = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)  # every value once, in order
CROPS = {
    "random": lambda image: crops.random_resized_crop(image, crops.Box(0, 0, SIDE, SIDE), SIDE),
    "center": lambda image: crops.center(image, resize=SIDE, size=SIDE),
}
LIMIT = 3e-7  # measured 2.37e-7; float32 numbers are 1.19e-7 apart between 1 and 2
NUMBERS = {"low": 0.0, "high": 65535.0, "mean": (0.5,), "std": (0.25,)}  # as the page xray has them


def augmented(x, dtype):
    """One view of a recipe whose operations are none: what a view is before anything is done to it."""
    made = views.make((ViewRecipe(Crop((1.0, 1.0)), ()),), size=SIDE, dtype=dtype, **NUMBERS)
    return made.augment(x, jnp.zeros(1, jnp.int32), jax.random.key(0), 0)


def standardised(x, dtype):
    return views.standardise(x, dtype=dtype, **NUMBERS)


@pytest.mark.parametrize("last", [augmented, standardised])
@pytest.mark.parametrize("crop", sorted(CROPS))
def test_a_16_bit_ramp_arrives_whole(crop, last):
    """All 65,536 values of a PNG arrive in float32, rising by even steps; 2,304 arrive in bfloat16, in order.

    Steps in float32 are of 61.0e-6, each right within LIMIT. The result, -2 to 2, has 8 significant bits in bfloat16:
    its steps are 1/128 between 1 and 2, some 128 stored values, and finer towards the mean. That rounding is the last
    thing that happens: everything before it is in float32.
    """
    out = io.BytesIO()
    Image.fromarray(RAMP).save(out, "png")
    x = CROPS[crop](pixels.decode(out.getvalue(), "ramp"))[None]  # (1, SIDE, SIDE, 1)
    assert x.dtype == np.uint16
    found = np.asarray(last(jnp.asarray(x), jnp.float32)).ravel()
    steps = np.diff(found.astype(float))
    assert len(np.unique(found)) == 65536 and (found[0], found[-1]) == (-2.0, 2.0)
    assert steps.min() > 0 and abs(steps - 4 / 65535).max() < LIMIT
    coarse = np.asarray(last(jnp.asarray(x), jnp.bfloat16)).astype(np.float32).ravel()
    assert (np.diff(coarse) >= 0).all() and len(np.unique(coarse)) == 2304
    np.testing.assert_array_equal(coarse, found.astype(jnp.bfloat16).astype(np.float32))  # rounded once, at the end
