"""A pretraining run put together: data, encoder, mechanism, loop, checkpoints, evaluation."""

import contextlib
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moco_jax import checks, parallel, views
from moco_jax.checkpoints.store import Store, describe, exclusive, read_json, write_json
from moco_jax.config import Config, ConfigError, to_json
from moco_jax.core import schedules
from moco_jax.core.optimizers import sgd
from moco_jax.data import loader, order, sources
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation.monitor import knn_monitor
from moco_jax.logs import RunLog
from moco_jax.loop import Cadence, Evaluator, run
from moco_jax.mechanisms import MECHANISMS
from moco_jax.models import encoder as encoders
from moco_jax.state import Facts, Mechanism


class Result(NamedTuple):
    """Where a run left things."""

    workdir: Path
    checkpoint: int  # the newest step on disk
    complete: bool  # it was already complete when asked for
    seconds: float


class Parts(NamedTuple):
    """Everything a run needs, made from a config and a user's objects."""

    config: Config  # resolved
    mechanism: Mechanism
    encoder: encoders.Encoder
    recipe: Any
    views: views.Views
    source: sources.Source
    values: frozen.Values
    steps_per_epoch: int
    warnings: list[str]
    objects: dict[str, str]  # labels of the user's objects, by argument


def assemble(
    config: Config,
    *,
    encoder: encoders.Encoder | None = None,
    source: sources.Source | None = None,
    recipe: Any = None,
    pairs: order.PairRule | None = None,
) -> Parts:
    """Check a config against data and hardware and make its parts; raises ConfigError before anything is compiled."""
    checks.check_ranges(config)
    objects = _labels(encoder, source, recipe, pairs)
    if source is None:
        source = sources.open_source(
            config.data.dataset, config.data.split, data_dir=config.data.data_dir, channels=config.data.channels
        )
    facts = sources.facts(source, config.data)
    config = checks.resolve(config, facts.records)
    warnings = checks.check(config, records=facts.records, devices=parallel.device_count(), name=source.name)
    if recipe is None:
        recipe = views.recipes.get(config.views.recipe, facts.channels)
    if len(recipe) != 2:
        raise ConfigError(f"the recipe makes {len(recipe)} views of an image, momentum contrast compares 2")
    dtype = parallel.compute_dtype(config.model.dtype)
    size = config.views.size
    if encoder is None:
        encoder = encoders.from_config(config.model, config.bn, channels=facts.channels, size=size, dtype=dtype)
    objects["encoder"] = encoder.label
    values = frozen.Values(facts.channels, str(facts.dtype), facts.low, facts.high)
    steps_per_epoch = order.steps_per_epoch(facts.records, config.batch_size)
    made = views.make(
        recipe, size=size, low=facts.low, high=facts.high, mean=config.data.mean, std=config.data.std, dtype=dtype
    )
    rate = schedules.learning_rate(
        config.optimizer, batch_size=config.batch_size, epochs=config.train.epochs, steps_per_epoch=steps_per_epoch
    )
    mechanism = MECHANISMS[config.mechanism](
        encoder,
        made,
        sgd(rate, momentum=config.optimizer.momentum, weight_decay=config.optimizer.weight_decay),
        config,
        Facts(facts.records, (size, size, facts.channels), steps_per_epoch),
        scan=not parallel.on_cpu(),
    )
    return Parts(config, mechanism, encoder, recipe, made, source, values, steps_per_epoch, warnings, objects)


def _labels(encoder: Any, source: Any, recipe: Any, pairs: Any) -> dict[str, str]:
    """What a checkpoint says of a user's objects; "" where the config's own is used."""
    return {
        "encoder": "" if encoder is None else encoder.label,
        "source": "" if source is None else source.name,
        "recipe": "" if recipe is None else repr(recipe),
        "pairs": "" if pairs is None else getattr(pairs, "__name__", repr(pairs)),
    }


def train(
    config: Config,
    workdir: str | Path,
    *,
    encoder: encoders.Encoder | None = None,
    source: sources.Source | None = None,
    recipe: Any = None,
    pairs: order.PairRule | None = None,
    evaluators: Sequence[Evaluator] | None = None,
) -> Result:
    """Pretrain into `workdir`, or continue what is there; a complete run is left alone.

    A user's objects replace what the config names: encoder (`models.encoder.build`), source (`data.sources.Source`),
    recipe (a tuple of `views.recipes.ViewRecipe`), pairs (`data.order`), evaluators ((state) -> numbers by name;
    default: the config's kNN). Raises ConfigError for anything that cannot be run, before anything is compiled or
    written.
    """
    started = time.perf_counter()
    parts = assemble(config, encoder=encoder, source=source, recipe=recipe, pairs=pairs)
    workdir = Path(workdir)
    stored = _stored(workdir)
    if stored is not None:
        _check_stored(parts, stored, str(workdir))
    if evaluators is None:
        monitor = functools.partial(knn_monitor, parts.config, parts.encoder, parts.values, parts.objects["source"])
        evaluators = [monitor()] if parts.config.eval.every_epochs else []
    cadence = _cadence(parts)

    about = {**describe(to_json(parts.config), parts.objects), "values": parts.values._asdict()}
    _make_folder(workdir, about if stored is None else None)
    alone = exclusive(workdir) if parallel.is_first_process() else contextlib.nullcontext()
    with alone, Store(workdir / "checkpoints", keep=parts.config.checkpoint.keep) as store:
        step = store.latest() or 0
        if step < cadence.total:
            _train(parts, workdir, store, about, step=step, cadence=cadence, pairs=pairs, evaluators=evaluators)
    return Result(workdir, cadence.total, step >= cadence.total, time.perf_counter() - started)


def _train(
    parts: Parts,
    workdir: Path,
    store: Store,
    about: dict[str, Any],
    *,
    step: int,
    cadence: Cadence,
    pairs: order.PairRule | None,
    evaluators: Sequence[Evaluator],
) -> None:
    """From step to the end: state, batches, log, and the loop over them."""
    config, init = parts.config, parts.mechanism.init
    state = store.restore(step, parallel.abstract(init)) if step else parallel.born(init)
    batches = loader.batches(
        parts.source,
        tuple(view.crop for view in parts.recipe),
        path=config.data.path,
        seed=config.seed,
        batch_size=config.batch_size,
        positions=parallel.positions(config.batch_size),
        first_step=step,
        last_step=cadence.total,
        size=config.views.size,
        workers=config.data.workers,
        pairs=pairs or order.same_record,
    )
    data = loader.resident(parts.source, config.data.workers) if config.data.path == "resident" else {}

    def save(step: int, state: Any) -> None:
        parallel.check_identical(state)
        store.save(step, parallel.everywhere(state), about)

    silent = not parallel.is_first_process()
    with RunLog(
        workdir, total_steps=cadence.total, first_step=step, batch_size=config.batch_size, silent=silent
    ) as log:
        _announce(log, parts, step, cadence)
        run(
            parallel.map_step(parts.mechanism.step, steps_per_call=config.train.steps_per_call),
            state,
            batches,
            parallel.put_data(data),
            first_step=step,
            cadence=cadence,
            log=log,
            evaluators=evaluators,
            save=save,
        )


def _make_folder(workdir: Path, about: dict[str, Any] | None) -> None:
    """The run's folder, with config.json if it is new; raises ConfigError where it cannot be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if about is not None and parallel.is_first_process():
            write_json(workdir / "config.json", about)
    except OSError as error:
        raise ConfigError(f"cannot write to {workdir}: {error.strerror}; give another --workdir") from None


def _cadence(parts: Parts) -> Cadence:
    config, epoch = parts.config, parts.steps_per_epoch
    return Cadence(
        total=config.train.epochs * epoch,
        per_call=config.train.steps_per_call,
        log=config.log.every_steps,
        evaluate=config.eval.every_epochs * epoch,
        save=config.checkpoint.every_epochs * epoch,
    )


def _stored(workdir: Path) -> dict[str, Any] | None:
    """What the folder's newest checkpoint says of itself, or its config.json before there is one; None for neither."""
    if (workdir / "checkpoints").is_dir():
        with Store(workdir / "checkpoints", read_only=True) as store:
            step = store.latest()
            if step is not None:
                return store.about(step)
    return read_json(workdir / "config.json")


def _check_stored(parts: Parts, stored: dict[str, Any], where: str) -> None:
    checks.check_same_run(parts.config, stored["config"], where)
    for name, label in stored["objects"].items():
        if parts.objects.get(name) != label:
            raise ConfigError(
                f"{where} holds a run with {name} {label or 'of the config'!r}, this one has "
                f"{parts.objects.get(name) or 'of the config'!r}: give the same object as {name}= to moco_jax.train"
            )


def _announce(log: RunLog, parts: Parts, step: int, cadence: Cadence) -> None:
    """What is about to run, in a few lines."""
    config = parts.config
    log.say(f"encoder: {parts.encoder.label}, computing in {parallel.compute_dtype(config.model.dtype)}")
    log.say(
        f"data: {parts.source.name}, {len(parts.source)} images, {parts.steps_per_epoch} steps per epoch, "
        f"{config.train.epochs} epochs = {cadence.total} steps, batch {config.batch_size}"
    )
    size = config.queue.size if config.queue else None
    chance = math.log(size + 1) if size else None
    if config.queue and config.shuffle:
        log.say(
            f"queue.size = {config.queue.size} (loss at chance: ln(K+1) = {chance:.2f}; above it at first is normal), "
            f"bn.group_size = {config.bn.group_size}, shuffle.block = {config.shuffle.block}"
        )
    for warning in parts.warnings:
        log.say(f"warning: {warning}")
    log.say(f"continuing at step {step}" if step else "starting")
    log.write(
        {
            "event": "start",
            "step": step,
            "devices": parallel.describe(),
            "encoder": parts.encoder.label,
            "images": len(parts.source),
            "chance": chance,
            "warnings": parts.warnings,
        }
    )
