"""The kNN monitor of a run: labelled images that training never sees, classified by their neighbours."""

import functools
from typing import Any

import numpy as np

from moco_jax.config import Config, ConfigError
from moco_jax.data import opening, sources
from moco_jax.evaluation import knn
from moco_jax.evaluation.encoder import Values, forward_of, freeze, preprocessing_of
from moco_jax.evaluation.features import extract
from moco_jax.loop import Evaluator
from moco_jax.models.encoder import Encoder


def knn_monitor(config: Config, encoder: Encoder, values: Values, own_source: str) -> Evaluator:
    """The config's kNN as an evaluator of a state: {"knn_top1": share}; `own_source` is "" where the config names it.

    Raises ConfigError where there are no labels, too few images, or images of another kind than the encoder's.
    """
    section = config.eval
    if own_source and section.data is None:
        raise ConfigError(
            f"kNN has no labelled images for source {own_source!r}: name a data set as eval.data, give "
            "evaluators= of your own, or set eval.every_epochs=0"
        )
    (bank, bank_labels), (queries, labels) = (_labelled(config, s) for s in ("bank_split", "split"))
    for split in (bank, queries):
        image = sources.read(split, 0)
        if (image.shape[2], str(image.dtype)) != (values.channels, values.dtype):
            raise ConfigError(
                f"{split.name} holds {image.dtype} images of {image.shape[2]} channels, the encoder is trained on "
                f"{values.dtype} of {values.channels}; eval.data must be of the same kind"
            )
    if section.k > len(bank):
        raise ConfigError(f"eval.k {section.k} neighbours, but {bank.name} holds {len(bank)} images; use that or less")
    preprocessing = preprocessing_of(config, values)
    forward = forward_of(encoder, preprocessing)
    classes = int(max(bank_labels.max(), labels.max())) + 1

    def evaluate(state: Any) -> dict[str, float]:
        get = functools.partial(
            extract,
            freeze(forward, state.online, encoder, preprocessing),
            workers=config.data.workers,
            batch_size=section.batch_size,
        )
        predicted = knn.classify(
            get(bank)[section.feature],
            bank_labels,
            get(queries)[section.feature],
            classes=classes,
            k=section.k,
            temperature=section.temperature,
        )
        return {"knn_top1": float((predicted == labels).mean())}

    return evaluate


def open_split(config: Config, split: str) -> sources.Source:
    """A split of the images that a run's kNN looks at; raises ConfigError where there is none."""
    section = config.eval
    return opening.open_split(
        config.data,
        split,
        name=section.data,
        data_dir=section.data_dir,
        features=(section.image_feature, section.label_feature),
    )


def _labelled(config: Config, key: str) -> tuple[sources.Source, np.ndarray]:
    """The split of the labelled images that a key of `eval` names, and its labels."""
    section = config.eval
    try:
        source = open_split(config, getattr(section, key))
    except ConfigError as error:
        raise ConfigError(
            f"{error}; --config.eval.{key} names another, --config.eval.every_epochs=0 watches none"
        ) from None
    labels = source.labels()
    if labels is None:
        raise ConfigError(
            f"{source.name} has no labels for kNN; name labelled data as eval.data, or eval.every_epochs=0"
        )
    return source, labels
