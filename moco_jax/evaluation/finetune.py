"""The whole network trained on labels, from an encoder or from random weights: one draw of labels or several."""

from pathlib import Path
from typing import Any

import numpy as np

from moco_jax import loop, parallel, protocols
from moco_jax.config import ConfigError, unknown
from moco_jax.data import sources
from moco_jax.evaluation import few, fitting, intervals, kept, labelled, loading, metrics, networks
from moco_jax.state import Network

STARTS = ("encoder", "scratch")


def run(
    settings: protocols.Finetune,
    checkpoint: str | Path,
    workdir: str | Path,
    *,
    load: loading.Load | None = None,
) -> str:
    """The result as text; made once, then read back from `workdir`.

    `load` makes an encoder of the path (None: of a run's folder or a file of weights, `loading.load`). Raises
    ConfigError for what cannot be, before anything is trained, and for a folder of another evaluation, and
    where an encoder changed meanwhile (`kept.result`).
    """
    check(settings)
    how = settings.views
    loaded = (load or loading.load)(checkpoint).resized(size=how.size, resize=how.resize, filter=how.filter)
    networks.check_encoder(settings.fit, loaded, scratch=settings.start == "scratch")
    pair = labelled.open_pair(
        settings.data, loaded.config.data, seed=settings.seed, own_source=loaded.source, like=loaded.values
    )
    network = loaded.trained.network if settings.start == "encoder" else loaded.untrained.network
    names = sources.names_of(pair.train.source)
    drawn = [
        few.rows(
            pair.train.labels, settings.labels, seed=settings.seed, draw=draw, names=names, class_names=pair.class_names
        )
        for draw in range(settings.draws)
    ]
    about = kept.question(settings, loaded, network, pair, drawn)

    def make() -> dict[str, Any]:
        fitter = networks.prepare(
            settings.fit, settings.views, loaded, pair, seed=settings.seed, workers=settings.data.workers
        )
        found = [
            _drawn(settings, fitter, network, rows, draw, Path(workdir) / f"draw_{draw}", about)
            for draw, rows in enumerate(drawn)
        ]
        groups = pair.test.groups
        units = len(pair.test.labels) if groups is None else len(np.unique(groups))
        over = f"{units:,} {'' if groups is None else 'groups of '}test images"
        return {"classes": pair.class_names, "test": pair.test_is, "units": units, "over": over, "draws": found}

    stored = kept.result(about, workdir, make, network, loaded, checkpoint=checkpoint if load is None else None)
    where = f"{loaded.trained.label}, {_origin(settings, loaded, checkpoint)}"
    return kept.said(text, stored, workdir, where)


def check(settings: protocols.Finetune) -> None:
    """Raises ConfigError for a number of a fine-tuning that cannot be."""
    networks.check_fit(settings.fit)
    if settings.start not in STARTS:
        raise unknown("start", settings.start, STARTS)
    for name in ("draws", "save_every_epochs"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, not {getattr(settings, name)}")
    if settings.test_every_epochs < 0 or not 0 <= settings.seed < 2**32:
        raise ConfigError("test_every_epochs must be 0 or more, and seed from 0 to 2**32 - 1")
    few.check(settings.labels)
    if settings.draws > 1 and (settings.labels == "all" or few.is_list(settings.labels)):
        raise ConfigError(
            f"draws={settings.draws} of labels={settings.labels!r}: nothing is drawn there, so all would be alike; use "
            "draws=1, or a number of labels per class"
        )


def _drawn(
    settings: protocols.Finetune,
    fitter: networks.Fitter,
    network: Network,
    rows: np.ndarray,
    draw: int,
    folder: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    """What one draw of labels gives: JSON-ready."""
    planned, own = networks.plan(fitter, rows), fitting.seed_of(settings.seed, draw)
    scratch = settings.start == "scratch"
    task, step = networks.task_of(fitter, network, planned, seed=settings.seed, scratch=scratch)
    labels = fitter.pair.test.labels

    def evaluate(state: Any) -> dict[str, float | str]:
        found = networks.judged(fitter, parallel.host(state.online))
        return {"test_top1": float(np.mean(found.argmax(1) == labels))}

    every = settings.test_every_epochs * planned.steps_per_epoch
    state, history = fitting.in_folder(
        task,
        step,
        fitting.batches(fitter.images, planned, seed=int(own), workers=fitter.images.workers),
        networks.data_of(fitter, own),
        planned,
        folder,
        about=about,
        called=f"draw {draw + 1} of {settings.draws}",
        save_every_epochs=settings.save_every_epochs,
        evaluations=[loop.Evaluation(every, evaluate)],
        start=(own,),
    )
    out = {"last": metrics.of(networks.judged(fitter, state.online), labels, fitter.pair.classes), "train": len(rows)}
    if history:
        best = max(history, key=lambda at: history[at]["test_top1"])
        out["best"] = {"epoch": best // planned.steps_per_epoch, "top1": history[best]["test_top1"]}
    return out


def _origin(settings: protocols.Finetune, loaded: loading.Loaded, checkpoint: str | Path) -> str:
    if settings.start == "scratch":
        return f"from scratch, the network of {checkpoint}"
    return f"from {loaded.where(checkpoint)}"


def text(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    settings, found = result["about"]["settings"], result["draws"]
    how = "supervised from scratch" if settings["start"] == "scratch" else "fine-tuned"
    over = intervals.over_draws([d["last"]["top1"] for d in found], result["units"])
    what = result["over"] + (f" and {len(found)} draws" if len(found) > 1 else "")
    half = "" if over.half_width is None else f" ± {100 * over.half_width:.2f} (95 % interval over {what})"
    asked = f"{settings['labels']} labels{' per class' if settings['labels'].isdigit() else ''}"
    lines = [f"{how} on {asked} ({found[0]['train']:,} images): top-1 {over.mean:.2%}{half}, last epoch"]
    if len(found) == 1:
        lines.append(metrics.summary(found[0]["last"], result["classes"]))
    if "best" in found[0]:
        best = float(np.mean([d["best"]["top1"] for d in found]))
        lines.append(f"  best epoch, chosen on the test split: {best:.2%}")
    views = settings["views"]["recipe"] or "centre views"
    lines.append(
        f"({len(found)} draw{'s' if len(found) > 1 else ''}, seed {settings['seed']}; views: {views}; judged on "
        f"{result['test']}, centre views)"
    )
    return "\n".join(lines)
