"""The linear probe as a command: raw pixels, untrained encoder, trained encoder."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax.checkpoints.store import read_json, write_json
from moco_jax.config import Config, ConfigError, Probe
from moco_jax.data import sources
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import features, linear

ROWS = ("raw pixels", "untrained encoder", "trained encoder")


def run(probe: Probe, checkpoint: str | Path, workdir: str | Path) -> str:
    """The table as text; computed once per checkpoint and settings, then read back from `workdir`.

    Raises RuntimeError where an encoder is not bit for bit what the checkpoint holds afterwards.
    """
    trained, untrained, config, step = frozen.load(checkpoint)
    settings = {**dataclasses.asdict(probe), "step": step, "encoder": trained.digest()}
    path = Path(workdir) / "linear.json"
    stored = read_json(path)
    if stored is None or stored["settings"] != settings:
        before = settings["encoder"]
        stored = {"settings": settings, "rows": _measure(probe, config, trained, untrained)}
        if frozen.load(checkpoint)[0].digest() != before or trained.digest() != before:
            raise RuntimeError("the encoder changed while it was evaluated; the result is not kept")
        Path(workdir).mkdir(parents=True, exist_ok=True)
        write_json(path, stored)
    text = linear.table(stored["rows"], per_class=probe.labels_per_class, draws=probe.draws)
    return f"{text}\nencoder {trained.label}, step {step} of {checkpoint}; numbers in {path}"


def _measure(
    probe: Probe, config: Config, trained: frozen.FrozenEncoder, untrained: frozen.FrozenEncoder
) -> dict[str, Any]:
    splits = [_open(config, split) for split in (probe.train_split, probe.test_split)]
    labels = [s.labels() for s in splits]
    if labels[0] is None or labels[1] is None:
        raise ConfigError(f"{config.data.dataset} has no labels; a linear probe needs some")
    get = {"resize": config.eval.resize, "batch_size": probe.batch_size}
    by_encoder = [
        tuple(features.extract(encoder, s, **get)["backbone"] for s in splits) for encoder in (untrained, trained)
    ]
    pixels = tuple(np.stack([s[i] for i in range(len(s))]).reshape(len(s), -1).astype(np.float32) for s in splits)
    return linear.compare(
        dict(zip(ROWS, (pixels, *by_encoder), strict=True)),
        (labels[0], labels[1]),
        per_class=probe.labels_per_class,
        draws=probe.draws,
        penalty=probe.penalty,
        seed=probe.seed,
    )


def _open(config: Config, split: str) -> sources.Source:
    return sources.open_source(
        config.data.dataset, split, data_dir=config.data.data_dir, channels=config.data.channels
    )
