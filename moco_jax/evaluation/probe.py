"""The linear probe as a command: raw pixels, untrained encoder, trained encoder."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax.checkpoints.store import read_json, write_json
from moco_jax.checks import check_probe
from moco_jax.config import Config, ConfigError, Probe
from moco_jax.data import opening, sources
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import features, linear

ROWS = ("raw pixels", "untrained encoder", "trained encoder")


def run(probe: Probe, checkpoint: str | Path, workdir: str | Path) -> str:
    """The table as text; computed once per checkpoint and settings, then read back from `workdir`.

    Raises RuntimeError where an encoder is not bit for bit what the checkpoint holds afterwards.
    """
    check_probe(probe)
    loaded = frozen.load(checkpoint)
    trained, untrained, config, step = loaded.trained, loaded.untrained, loaded.config, loaded.step
    if loaded.source and probe.dataset is None:
        raise ConfigError(
            f"{checkpoint} was trained on a source of your own, {loaded.source!r}: name labelled data by "
            "--config.dataset=NAME"
        )
    settings = {**dataclasses.asdict(probe), "step": step, "encoder": frozen.digest(trained.network)}
    path = Path(workdir) / "linear.json"
    stored = read_json(path)
    if stored is None or stored.get("settings") != settings:
        stored = {"settings": settings, "rows": _measure(probe, config, trained, untrained)}
        after = {frozen.digest(trained.network), frozen.stored_digest(checkpoint, step, trained.network)}
        if after != {settings["encoder"]}:
            raise RuntimeError("the encoder changed while it was evaluated; the result is not kept")
        Path(workdir).mkdir(parents=True, exist_ok=True)
        write_json(path, stored)
    text = linear.table(stored["rows"], per_class=probe.labels_per_class, draws=probe.draws)
    if ROWS[0] not in stored["rows"]:
        text += "\n(no row of raw pixels: the images differ in size)"
    return f"{text}\nencoder {trained.label}, step {step} of {loaded.total_steps} of {checkpoint}; numbers in {path}"


def _measure(
    probe: Probe, config: Config, trained: frozen.FrozenEncoder, untrained: frozen.FrozenEncoder
) -> dict[str, Any]:
    (train, labels), (test, test_labels) = (_labelled(probe, config, s) for s in (probe.train_split, probe.test_split))

    def encoded(encoder: frozen.FrozenEncoder) -> linear.Features:
        get = functools.partial(features.extract, encoder, batch_size=probe.batch_size, workers=config.data.workers)
        return get(train)["backbone"], get(test)["backbone"]

    pixels = [_pixels(split) for split in (train, test)]
    rows = {ROWS[1]: encoded(untrained), ROWS[2]: encoded(trained)}
    if pixels[0] is not None and pixels[1] is not None and pixels[0].shape[1] == pixels[1].shape[1]:
        rows = {ROWS[0]: (pixels[0], pixels[1]), **rows}
    return linear.compare(
        rows,
        (labels, test_labels),
        per_class=probe.labels_per_class,
        draws=probe.draws,
        penalty=probe.penalty,
        seed=probe.seed,
    )


def _pixels(source: sources.Source) -> np.ndarray | None:
    """Stored values of every image in a row, (M, H * W * C) float32; None where images differ in size."""
    first = sources.read(source, 0)
    rows = np.empty((len(source), first.size), np.float32)
    for i in range(len(source)):
        image = sources.read(source, i)
        if image.shape != first.shape:
            return None
        rows[i] = image.reshape(-1)
    return rows


def _labelled(probe: Probe, config: Config, split: str) -> tuple[sources.Source, np.ndarray]:
    """A split of the labelled images and its labels."""
    source = opening.open_split(config.data, split, name=probe.dataset, data_dir=probe.data_dir)
    labels = source.labels()
    if labels is None:
        raise ConfigError(
            f"{source.name} has no labels; a linear probe needs some: --config.dataset names a data set or a path"
        )
    return source, labels
