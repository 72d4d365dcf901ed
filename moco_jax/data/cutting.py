"""What the host makes of the pixels of a batch: crops, or canvases of which the device cuts the crops.

A canvas holds the part of an image that its crops cover, and is of one size for all images. Decoding is then all that
the host does with pixels; two matrix products on the device (`views.crop`) do the rest.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from moco_jax.data import crops, sources
from moco_jax.data.crops import Box


class Crop(Protocol):
    """What a recipe says about the crop of one view."""

    @property
    def scale(self) -> tuple[float, float]: ...
    @property
    def ratio(self) -> tuple[float, float]: ...


Cut = Callable[[int, np.ndarray], dict[str, Any]]  # (step, ids (n, V)) -> what a batch holds beside the ids


class Memory:
    """Arrays of one shape in memory that is used again once nobody looks at it: fresh pages cost as much as copying.

    What is in an array is what was there; of floats it is finite, so that it counts for nothing where its weight is 0.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._shape, self._dtype = shape, dtype
        self._free: list[np.ndarray] = []

    def array(self) -> np.ndarray:
        """An array whose memory is free again when it and all views of it are gone."""
        try:
            memory = self._free.pop()  # at once: several threads take
        except IndexError:
            memory = np.zeros(self._shape, self._dtype)
        owner = np.frombuffer(memory.data, self._dtype)  # every view of it holds this very array
        weakref.finalize(owner, self._free.append, memory).atexit = False
        return owner.reshape(self._shape)


def on_host(source: sources.Source, recipe_crops: Sequence[Crop], seed: int, positions: np.ndarray, size: int) -> Cut:
    """{"raw": V raw views (n, size, size, C)}."""
    first = sources.read(source, 0)
    memory = Memory((len(positions), size, size, first.shape[2]), first.dtype)
    places = positions.tolist()

    def cut(step: int, ids: np.ndarray) -> dict[str, Any]:
        raw = tuple(memory.array() for _ in recipe_crops)
        streams = crops.words(seed, step, places, len(recipe_crops))
        for row, records in enumerate(ids.tolist()):
            images = _images(source, records[: len(recipe_crops)], first)
            boxes = _boxes(images, recipe_crops, streams[row])
            for view, (image, box) in enumerate(zip(images, boxes, strict=True)):
                raw[view][row] = crops.random_resized_crop(image, box, size)
        return {"raw": raw}

    return cut


def on_canvas(
    source: sources.Source,
    recipe_crops: Sequence[Crop],
    seed: int,
    positions: np.ndarray,
    size: int,
    side: int,
    arrays: int,
) -> Cut:
    """{"canvas": `arrays` arrays (n, side, side, C), "boxes": (n, V, 4) int32}: one for all views, or one for each."""
    first = sources.read(source, 0)
    memory = Memory((len(positions), side, side, first.shape[2]), first.dtype)
    places = positions.tolist()

    def cut(step: int, ids: np.ndarray) -> dict[str, Any]:
        made = tuple(memory.array() for _ in range(arrays))
        boxes = np.empty((len(ids), len(recipe_crops), 4), np.int32)
        streams = crops.words(seed, step, places, len(recipe_crops))
        for row, records in enumerate(ids.tolist()):
            images = _images(source, records[: len(recipe_crops)], first)
            drawn = _boxes(images, recipe_crops, streams[row])
            if arrays == 1:
                boxes[row] = place(images[0], drawn, made[0][row], size)
            else:
                for view, (image, box) in enumerate(zip(images, drawn, strict=True)):
                    boxes[row, view] = place(image, [box], made[view][row], size)[0]
        return {"canvas": made, "boxes": boxes}

    return cut


def _images(source: sources.Source, records: Sequence[int], first: np.ndarray) -> list[np.ndarray]:
    """The image behind each view of a row; a record behind several views is decoded once."""
    images = {i: sources.read(source, i, like=first) for i in set(records)}
    return [images[i] for i in records]


def _boxes(images: Sequence[np.ndarray], recipe_crops: Sequence[Crop], streams: np.ndarray) -> list[Box]:
    """The box of each view of a row, by its (V, crops.WORDS)."""
    return [
        crops.draw_box(stream, image.shape[0], image.shape[1], how.scale, how.ratio)
        for stream, image, how in zip(streams, images, recipe_crops, strict=True)
    ]


def place(image: np.ndarray, boxes: Sequence[Box], canvas: np.ndarray, size: int) -> list[Box]:
    """Copy what `boxes` cover of an image (H, W, C) to a canvas (side, side, C); where they are there.

    A part that is larger than the canvas is not copied: the crops themselves are, cut here to (size, size) each, side
    by side; cutting those on the device changes nothing. So side is len(boxes) * size or more.
    """
    top, left = min(b.top for b in boxes), min(b.left for b in boxes)
    height, width = max(b.top + b.height for b in boxes) - top, max(b.left + b.width for b in boxes) - left
    if max(height, width) <= len(canvas):
        canvas[:height, :width] = image[top : top + height, left : left + width]
        return [Box(b.top - top, b.left - left, b.height, b.width) for b in boxes]
    placed = [Box(0, i * size, size, size) for i in range(len(boxes))]
    for box, there in zip(boxes, placed, strict=True):
        canvas[:size, there.left : there.left + size] = crops.random_resized_crop(image, box, size)
    return placed
