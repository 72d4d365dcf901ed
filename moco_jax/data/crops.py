"""Crops on the host with Pillow, antialiased as torchvision's are on PIL images, for any number of channels.

Random crops draw raw Philox words and make numbers of them here: NumPy keeps bit generators stable, `Generator`s not.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from moco_jax.config import ConfigError

TRIES = 10  # as in torchvision's RandomResizedCrop
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
WORDS = 4 * TRIES  # random words that one box can need


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


def words(seed: int, step: int, positions: Sequence[int], views: int) -> np.ndarray:
    """(n, views, WORDS) uint64: the random stream of each view of n rows, whatever other rows stand beside one."""
    out = np.empty((len(positions), views, WORDS), np.uint64)
    philox = np.random.Philox(key=np.array([seed, step], np.uint64))
    state = philox.state  # set anew for each stream: making a generator takes four times as long as its words
    for row, position in enumerate(positions):
        for view in range(views):
            state["state"]["counter"][:] = (0, view, position, 0)  # the first place counts the stream's blocks
            philox.state = state
            out[row, view] = philox.random_raw(WORDS)
    return out


def draw_box(
    stream: np.ndarray, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """The box of torchvision's RandomResizedCrop: area uniform in `scale` of the image, aspect log-uniform in `ratio`.

    `stream` is (WORDS,) uint64, from `words`. Ten tries, then the largest centred box whose aspect is within `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for tried in stream.reshape(TRIES, 4):
        area_word, ratio_word, top_word, left_word = tried.tolist()
        area = height * width * (scale[0] + (scale[1] - scale[0]) * _unit(area_word))
        aspect = math.exp(low + (high - low) * _unit(ratio_word))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(_below(top_word, height - h + 1), _below(left_word, width - w + 1), h, w)
    return _central_box(height, width, ratio)


def _unit(word: int) -> float:
    """A word as a double in [0, 1)."""
    return (word >> 11) * 2.0**-53


def _below(word: int, count: int) -> int:
    """A word as an integer in [0, count)."""
    return (word * count) >> 64


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def random_resized_crop(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """(H, W, C) -> (size, size, C) in the same dtype: `box` cut out first, then resized, as torchvision does."""
    cut = image[box.top : box.top + box.height, box.left : box.left + box.width]
    return _resized(cut, size, size)


def center(image: np.ndarray, *, resize: int, size: int, filter: str = "bilinear") -> np.ndarray:
    """(H, W, C) -> (size, size, C) in the same dtype: torchvision's Resize(resize), then its CenterCrop(size).

    Resize is of the shorter side, antialiased, by a filter of FILTERS. Raises ConfigError if `size` exceeds `resize`,
    where torchvision would pad with zeros.
    """
    if size > resize:
        raise ConfigError(
            f"a centre crop of {size} pixels does not fit a shorter side resized to {resize}; resize to {size} or more"
        )
    image = shorter_side(image, resize, filter=filter)
    height, width = image.shape[:2]
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return image[top : top + size, left : left + size]


def shorter_side(image: np.ndarray, size: int, *, filter: str = "bilinear") -> np.ndarray:
    """(H, W, C) -> the same dtype with a shorter side of `size`: torchvision's Resize, by one of FILTERS."""
    height, width = image.shape[:2]
    longer = int(size * max(height, width) / min(height, width))
    height, width = (size, longer) if height <= width else (longer, size)
    return _resized(image, height, width, FILTERS[filter])


def _resized(
    image: np.ndarray, height: int, width: int, filter: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """8 bits take Pillow's own fixed point, three channels at once; everything else goes band by band as floats."""
    if image.shape[:2] == (height, width):
        return image

    def resized(pixels: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(picture.resize((width, height), filter))

    if image.dtype == np.uint8:
        return resized(image) if image.shape[2] == 3 else np.stack([resized(b) for b in np.moveaxis(image, 2, 0)], 2)
    return _stored(np.stack([resized(b) for b in np.moveaxis(image, 2, 0).astype(np.float32)], 2), image.dtype)


def _stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats back in the storage dtype: integers are rounded and clipped to what they can hold."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)
