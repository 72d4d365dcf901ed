"""A pretraining run put together: data, encoder, mechanism, loop, checkpoints, evaluation."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moco_jax import checks, parallel, views
from moco_jax.checkpoints.store import Store, describe, exclusive, read_json, write_json
from moco_jax.config import Config, ConfigError, read_stored, to_json
from moco_jax.core import schedules
from moco_jax.core.optimizers import sgd
from moco_jax.data import loader, order, sources
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation.leak import leak_alarm
from moco_jax.evaluation.monitor import knn_monitor
from moco_jax.logs import RunLog
from moco_jax.loop import Cadence, Evaluation, Evaluator, run
from moco_jax.mechanisms import MECHANISMS
from moco_jax.models import encoder as encoders
from moco_jax.state import Facts, Mechanism


class Result(NamedTuple):
    """Where a run left things."""

    workdir: Path
    checkpoint: int  # the newest checkpoint: its step
    was_complete: bool  # all steps were done before, so nothing was trained now
    seconds: float


class Parts(NamedTuple):
    """Everything a run needs, made from a config and a user's objects."""

    config: Config  # resolved
    make: Callable[..., Mechanism]  # (config, *, permutation) -> the mechanism of these parts
    mechanism: Mechanism
    mapped: parallel.Step  # its step over all devices
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
    if not isinstance(config, Config):
        raise ConfigError(f"a run takes moco_jax.config.read(page), not {type(config).__name__}")
    checks.check_ranges(config)
    images = source
    if images is None:
        images = sources.open_source(
            config.data.dataset, config.data.split, data_dir=config.data.data_dir, channels=config.data.channels
        )
    facts = sources.facts(images, config.data)
    if facts.shape is None and config.data.path == "resident":
        raise ConfigError(
            f"the images of {images.name} differ in size, so they cannot be resident: data.path='streamed'"
        )
    objects = _labels(encoder, source, recipe, pairs)
    config = checks.resolve(config, facts.records)
    warnings = checks.check(config, records=facts.records, devices=parallel.device_count(), name=images.name)
    if recipe is None:
        recipe = views.recipes.get(config.views.recipe, facts.channels)
    if len(recipe) != 2 or not all(isinstance(view, views.recipes.ViewRecipe) for view in recipe):
        raise ConfigError(f"a recipe is two ViewRecipe, one for each view that is compared, not {recipe!r}")
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
    make = functools.partial(
        MECHANISMS[config.mechanism],
        encoder,
        made,
        sgd(rate, momentum=config.optimizer.momentum, weight_decay=config.optimizer.weight_decay),
        facts=Facts(facts.records, (size, size, facts.channels), steps_per_epoch),
        scan=not parallel.on_cpu(),
    )
    mechanism = make(config)
    mapped = parallel.map_step(mechanism.step, steps_per_call=config.train.steps_per_call)
    return Parts(
        config, make, mechanism, mapped, encoder, recipe, made, images, values, steps_per_epoch, warnings, objects
    )


def _labels(encoder: Any, source: Any, recipe: Any, pairs: Any) -> dict[str, str]:
    """What a checkpoint says of a user's objects; "" where the config's own is used."""
    return {
        "encoder": "" if encoder is None else encoder.label,
        "source": "" if source is None else source.name,
        "recipe": "" if recipe is None else repr(recipe),
        "pairs": "" if pairs is None else getattr(pairs, "__qualname__", type(pairs).__qualname__),
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
    default: the config's kNN; the leak alarm stands beside them). Raises ConfigError for anything that cannot be run,
    before anything is compiled or written.
    """
    started = time.perf_counter()
    parts = assemble(config, encoder=encoder, source=source, recipe=recipe, pairs=pairs)
    if "://" in str(workdir):
        raise ConfigError(f"workdir {workdir} is no folder of this file system; mount the bucket and give its path")
    workdir = Path(workdir)
    _check_folder(parts, workdir)
    if evaluators is None:
        evaluators = []
        if parts.config.eval.every_epochs:
            evaluators = [knn_monitor(parts.config, parts.encoder, parts.values, parts.objects["source"])]
    cadence = _cadence(parts)
    about = {
        **describe(to_json(parts.config), parts.objects),
        "values": parts.values._asdict(),
        "total_steps": cadence.total,
    }
    resident = parts.config.data.path == "resident"
    data = loader.resident(parts.source, parts.config.data.workers) if resident else {}

    parallel.barrier("checked")  # no process may find the folder half made by another
    with _folder(workdir, about), Store(workdir / "checkpoints", keep=parts.config.checkpoint.keep) as store:
        step = store.latest() or 0
        if step < cadence.total:
            _train(parts, workdir, store, about, data, step=step, cadence=cadence, pairs=pairs, evaluators=evaluators)
    return Result(workdir, cadence.total, step >= cadence.total, time.perf_counter() - started)


def _train(
    parts: Parts,
    workdir: Path,
    store: Store,
    about: dict[str, Any],
    data: dict[str, Any],
    *,
    step: int,
    cadence: Cadence,
    pairs: order.PairRule | None,
    evaluators: Sequence[Evaluator],
) -> None:
    """From step to the end: state, batches, log, and the loop over them."""
    config, init = parts.config, parts.mechanism.init
    state = store.restore(step, parallel.abstract(init)) if step else parallel.born(init)
    batches, placed = _batches(parts, pairs), parallel.put_data(data)
    evaluations = [Evaluation(config.eval.every_epochs * parts.steps_per_epoch, e) for e in evaluators]
    if block := checks.leak_block(config, parallel.device_count()):
        alarm = leak_alarm(config, parts.make, batches, placed, block=block)
        evaluations.append(Evaluation(config.leak.every_epochs * parts.steps_per_epoch, alarm))

    def save(step: int, state: Any) -> None:
        parallel.check_identical(state)
        store.save(step, parallel.everywhere(state), about)

    silent = not parallel.is_first_process()
    with RunLog(
        workdir, total_steps=cadence.total, first_step=step, batch_size=config.batch_size, silent=silent
    ) as log:
        _announce(log, parts, step, cadence)
        try:
            run(
                parts.mapped,
                state,
                batches(first_step=step, last_step=cadence.total),
                placed,
                first_step=step,
                cadence=cadence,
                log=log,
                evaluations=evaluations,
                save=save,
            )
        except KeyboardInterrupt:
            log.say(f"stopped; the same call continues from step {store.latest() or 0}")
            raise


def _batches(parts: Parts, pairs: order.PairRule | None) -> Callable[..., Iterator[Any]]:
    """(first_step=, last_step=) -> this process's host batches of those steps."""
    config = parts.config
    return functools.partial(
        loader.batches,
        parts.source,
        tuple(view.crop for view in parts.recipe),
        path=config.data.path,
        seed=config.seed,
        batch_size=config.batch_size,
        positions=parallel.positions(config.batch_size),
        size=config.views.size,
        workers=config.data.workers,
        pairs=order.same_record if pairs is None else pairs,
    )


@contextlib.contextmanager
def _folder(workdir: Path, about: dict[str, Any]) -> Iterator[None]:
    """The run's folder, held by this run, with config.json; raises ConfigError where it cannot be written."""
    if not parallel.is_first_process():
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            held.enter_context(exclusive(workdir))
            write_json(workdir / "config.json", about)
        except OSError as error:
            reason = "it is a file" if workdir.is_file() else error.strerror
            raise ConfigError(f"cannot write to {workdir}: {reason}; give another --workdir") from None
        yield


def _cadence(parts: Parts) -> Cadence:
    config, epoch = parts.config, parts.steps_per_epoch
    return Cadence(
        total=config.train.epochs * epoch,
        per_call=config.train.steps_per_call,
        log=config.log.every_steps,
        save=config.checkpoint.every_epochs * epoch,
    )


def _check_folder(parts: Parts, workdir: Path) -> None:
    """Raises ConfigError where the folder holds another run than `parts`."""
    stored, hint = None, ""
    if (workdir / "checkpoints").is_dir():
        with Store(workdir / "checkpoints", read_only=True) as store:
            step = store.latest()
            stored = None if step is None else store.about(step)
    if stored is None:  # stopped before its first checkpoint, or no run at all
        stored = read_json(workdir / "config.json")
        hint = f" (it has no checkpoint yet: delete {workdir} to begin anew)"
    if stored is None:
        return
    try:
        checks.check_same_run(parts.config, read_stored(stored["config"]), f"{workdir}{hint}")
        objects = stored["objects"]
    except KeyError as error:
        raise ConfigError(f"{workdir}/config.json lacks {error}; delete it, or use another workdir") from None
    for name, label in objects.items():
        if parts.objects.get(name) != label:
            raise ConfigError(
                f"{workdir} holds a run with {name} {label or 'of the config'!r}, this one has "
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
