"""The linear probe as a command: raw pixels, untrained encoder, trained encoder."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax.checkpoints.store import read_json, write_json
from moco_jax.checks import check_probe
from moco_jax.config import Config, ConfigError, Probe
from moco_jax.data import sources
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
    return f"{text}\nencoder {trained.label}, step {step} of {loaded.total_steps} of {checkpoint}; numbers in {path}"


def _measure(
    probe: Probe, config: Config, trained: frozen.FrozenEncoder, untrained: frozen.FrozenEncoder
) -> dict[str, Any]:
    train, test = (_open(probe, config, split) for split in (probe.train_split, probe.test_split))
    labels, test_labels = train.labels(), test.labels()
    if labels is None or test_labels is None:
        raise ConfigError(
            f"{train.name} has no labels; a linear probe needs some: name a data set by --config.dataset=NAME"
        )

    def encoded(encoder: frozen.FrozenEncoder) -> linear.Features:
        get = functools.partial(
            features.extract, encoder, resize=config.eval.resize or config.views.size, batch_size=probe.batch_size
        )
        return get(train)["backbone"], get(test)["backbone"]

    return linear.compare(
        dict(zip(ROWS, ((_pixels(train), _pixels(test)), encoded(untrained), encoded(trained)), strict=True)),
        (labels, test_labels),
        per_class=probe.labels_per_class,
        draws=probe.draws,
        penalty=probe.penalty,
        seed=probe.seed,
    )


def _pixels(source: sources.Source) -> np.ndarray:
    """Stored values of every image in a row: (M, H * W * C) float32."""
    rows = [sources.read(source, i).reshape(-1) for i in range(len(source))]
    if len({len(row) for row in rows}) > 1:
        raise ConfigError(f"the images of {source.name} differ in size, so there are no raw pixels to compare with")
    return np.stack(rows).astype(np.float32)


def _open(probe: Probe, config: Config, split: str) -> sources.Source:
    return sources.open_source(
        probe.dataset or config.data.dataset,
        split,
        data_dir=probe.data_dir or config.data.data_dir,
        channels=config.data.channels,
    )
