"""What a run has to know of its images, by those looked at."""

from typing import NamedTuple

import numpy as np

from moco_jax import config
from moco_jax.config import ConfigError
from moco_jax.data import sources

INSIDE = 0.01  # share of the values off the ends of data.range that must lie within it: fewer are a mistake
SAMPLE = 64  # images that `measure` looks at


class Measured(NamedTuple):
    """What the images are, by those looked at.

    `shape` is (H, W), None if sizes differ; `low` and `high` are the values mapped to 0..1; `sides` the shorter side of
    each image that was looked at.
    """

    records: int
    channels: int
    dtype: np.dtype
    shape: tuple[int, int] | None
    low: float
    high: float
    sides: tuple[int, ...]


def measure(source: sources.Source, data: config.Data) -> Measured:
    """What the run has to know of the images, from up to 64 of them spread over the source.

    Raises ConfigError for an object that is no source, an empty one, mixed channels or dtypes, mean or std not of one
    value per channel, 16-bit or float images without `data.range` (naming the range measured), and a `data.range` that
    nearly every value lies outside of, whatever lies on its ends.
    """
    sources.check(source)
    chosen = np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int)).tolist()
    first = sources.read(source, 0)
    sample = [sources.read(source, i, like=first) for i in chosen]
    sizes = {image.shape[:2] for image in sample}
    channels = first.shape[2]
    if data.channels not in (None, channels):
        raise ConfigError(
            f"data.channels is {data.channels} and images of {source.name} have {sources.channels_of(first)};"
            " a source of your own is not converted, leave data.channels out"
        )
    _check_normalisation(data, channels)
    low, high = _range(data, sample)
    shape = sizes.pop() if len(sizes) == 1 else None
    return Measured(len(source), channels, first.dtype, shape, low, high, tuple(min(i.shape[:2]) for i in sample))


def enlarged(found: Measured, size: int) -> list[str]:
    """A warning where images are smaller than a view of `size` pixels."""
    small = [side for side in found.sides if side < size]
    if not small:
        return []
    return [
        f"{len(small)} of the {len(found.sides)} images looked at are smaller than views.size {size} (the smallest has "
        f"a side of {min(small)} pixels) and are enlarged, which adds no detail: use a smaller views.size, or leave "
        "them out"
    ]


def _check_normalisation(data: config.Data, channels: int) -> None:
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != channels:
            raise ConfigError(f"data.{name} has length {len(values)} and images have {channels} channels; one for each")
    if not min(data.std) > 0:
        raise ConfigError(f"data.std must be above 0, not {data.std}")


def _range(data: config.Data, sample: list[np.ndarray]) -> tuple[float, float]:
    if data.range is None and sample[0].dtype == np.uint8:
        return 0.0, 255.0
    low, high = min(image.min() for image in sample), max(image.max() for image in sample)
    measured = f"{len(sample)} images measured hold {low} to {high}"
    if data.range is None:
        raise ConfigError(
            f"{sample[0].dtype} images need data.range=(low, high), the values mapped to 0 and 1; {measured}"
        )
    if not data.range[0] < data.range[1]:
        raise ConfigError(f"data.range must rise, not {data.range}")
    # A value on an end of the range, as a background of zeros is on that of (0, 255), does not show that it fits.
    inside = np.mean([((image > data.range[0]) & (image < data.range[1])).mean() for image in sample])
    outside = np.mean([((image < data.range[0]) | (image > data.range[1])).mean() for image in sample])
    if inside < INSIDE * (inside + outside) or high <= data.range[0] or low >= data.range[1]:
        raise ConfigError(
            f"data.range {data.range} leaves everything outside but {inside:.1%} of the values: {measured}; give their "
            "span"
        )
    return data.range
