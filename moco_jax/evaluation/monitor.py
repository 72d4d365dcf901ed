"""The kNN monitor of a run: labelled images that training never sees, classified by their neighbours."""

import functools
from typing import Any

import numpy as np

from moco_jax.config import Config, ConfigError
from moco_jax.data import opening, replacing, sources
from moco_jax.evaluation import knn
from moco_jax.evaluation.encoder import Values, forward_of, freeze, preprocessing_of
from moco_jax.evaluation.features import extract
from moco_jax.loop import Evaluator
from moco_jax.models.encoder import Encoder


def knn_monitor(config: Config, encoder: Encoder, values: Values, own_source: str) -> Evaluator:
    """The config's kNN as an evaluator of a state: {"knn_top1": share}; `own_source` is "" where the config names it.

    Bad files are left out of both splits, which a "warning" says; with more of them than data.max_bad_fraction of one
    it raises ConfigError. So it does here where there are no labels, too few images, or images of another kind than the
    encoder's.
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
    _check_k(section.k, len(bank), bank.name)
    preprocessing = preprocessing_of(config, values)
    forward = forward_of(encoder, preprocessing)
    classes = int(max(bank_labels.max(), labels.max())) + 1

    def evaluate(state: Any) -> dict[str, float | str]:
        get = functools.partial(
            extract,
            freeze(forward, state.online, encoder, preprocessing),
            workers=config.data.workers,
            batch_size=section.batch_size,
        )
        known, of = _own(bank, get(bank)[section.feature], bank_labels)
        asked, truth = _own(queries, get(queries)[section.feature], labels)
        _check_k(section.k, len(known), bank.name)
        predicted = knn.classify(known, of, asked, classes=classes, k=section.k, temperature=section.temperature)
        found: dict[str, float | str] = {"knn_top1": float((predicted == truth).mean())}
        left_out = [_left_out(split) for split in (bank, queries) if split.bad]
        return found | ({"warning": "; ".join(left_out)} if left_out else {})

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


def _own(split: replacing.Replacing, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels without those of bad files, whose stand-ins have other labels."""
    if not split.bad:
        return features, labels
    return features[split.good], labels[split.good]


def _left_out(split: replacing.Replacing) -> str:
    """What is missing in a split, named the first time."""
    new = split.news()
    names = f": {', '.join(map(str, new))}" if new else ""
    return f"kNN goes without {len(split.bad)} of the {len(split)} images of {split.name}, which cannot be read{names}"


def _check_k(k: int, images: int, name: str) -> None:
    if k > images:
        raise ConfigError(f"eval.k {k} neighbours, but {name} holds {images} images; use that or less")


def _labelled(config: Config, key: str) -> tuple[replacing.Replacing, np.ndarray]:
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
    return replacing.Replacing(source, config.data.max_bad_fraction), labels
