"""Pictures of a run's images, for a report and for TensorBoard: view pairs, nearest neighbours, a map of features."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moco_jax.assembly import Parts, batches_of
from moco_jax.config import ConfigError
from moco_jax.evaluation import monitor, samples
from moco_jax.evaluation.encoder import FrozenEncoder, forward_of, freeze, preprocessing_of
from moco_jax.reports import pictures
from moco_jax.reports.curves import Picture

PAIRS, QUERIES, NEAREST = 8, 6, 6  # view pairs, images with neighbours, neighbours of each: what fits a page
VIEWS, NEIGHBOURS, MAP = "View pairs", "Nearest neighbours", "Map of features"


class Options(NamedTuple):
    """What a user may choose."""

    bands: str | None = None  # channels to show, from 1: three, or one; None: the first
    map: str = "pca"
    images: int = 500  # encoded at most, for neighbours and map together


def gather(tasks: dict[str, Callable[[], Picture]]) -> tuple[list[Picture], dict[str, str]]:
    """The pictures of some tasks, and {title: why} of those that cannot be made from what is there."""
    made, missing = [], {}
    for title, task in tasks.items():
        try:
            made.append(task())
        except (ConfigError, OSError) as error:  # data that moved or broke: the rest is still true
            missing[title] = " ".join(str(error).split())
    return made, missing


def views(parts: Parts, step: int, options: Options, label: str) -> Picture:
    """Query and key views of the first rows of the batch after `step` steps. Raises ConfigError for other bands."""
    bands = pictures.bands_of(options.bands, parts.values.channels)
    count = min(PAIRS, parts.config.batch_size)
    (batch,) = batches_of(parts)(first_step=step, last_step=step + 1, positions=np.arange(count))
    made = samples.view_pairs(parts.views, parts.config, parts.source, batch, step)
    return pictures.view_pairs(made, bands, label, step)


def encoded(parts: Parts, encoder: FrozenEncoder, images: int) -> tuple[samples.Encoded, samples.Encoded | None]:
    """(bank, queries): the config's splits for kNN; without it training images, and held-out ones if there are any."""
    config = parts.config
    if parts.objects["source"] and config.eval.data is None:
        return samples.encode(encoder, config, parts.source, images), None
    if config.eval.every_epochs:
        bank, held_out = (monitor.open_split(config, split) for split in (config.eval.bank_split, config.eval.split))
    else:
        bank = parts.source
        try:
            held_out = monitor.open_split(config, config.eval.split)
        except ConfigError:  # no such split, and nobody asked for one
            return samples.encode(encoder, config, bank, images), None
    count = min(QUERIES, images)
    return samples.encode(encoder, config, bank, images), samples.encode(encoder, config, held_out, count)


def neighbours(
    parts: Parts, bank: samples.Encoded, queries: samples.Encoded | None, options: Options, label: str
) -> Picture:
    """Held-out images, or training images, with those nearest to them."""
    bands = pictures.bands_of(options.bands, parts.values.channels)
    found = samples.neighbours(queries, bank, parts.values, count=QUERIES, nearest=NEAREST)
    return pictures.neighbours(found, bands, label)


def feature_map(bank: samples.Encoded, options: Options, label: str) -> Picture:
    """The bank's features in the plane."""
    points = samples.plane(bank, options.map)
    return pictures.feature_map(points, bank.marks, bank.marked_by, options.map, label, bank.name)


def frozen(parts: Parts, network: Any) -> FrozenEncoder:
    """The encoder of a run with the parameters of now."""
    preprocessing = preprocessing_of(parts.config, parts.values)
    return freeze(forward_of(parts.encoder, preprocessing), network, parts.encoder, preprocessing)
