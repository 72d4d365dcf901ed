"""A pretraining run: parts, loop, checkpoints, evaluation, in one folder."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moco_jax import checks, gallery, initial, parallel, places, run_folder, stopping
from moco_jax.assembly import Parts, assemble, batches_of, check_hosts
from moco_jax.bad_files import Told
from moco_jax.checkpoints.store import Store, describe
from moco_jax.config import Config, flat, to_json
from moco_jax.data import loader, order, sources
from moco_jax.evaluation.consistency import key_consistency
from moco_jax.evaluation.leak import leak_alarm
from moco_jax.evaluation.monitor import knn_monitor
from moco_jax.events import Events, check_installed
from moco_jax.logs import EVALUATED, VERDICT, RunLog
from moco_jax.loop import Cadence, Evaluation, Evaluator, Unlogged, run
from moco_jax.models import encoder as encoders
from moco_jax.reports import runs, verdict
from moco_jax.reports.curves import Picture

ANNOUNCED = ("queue.size", "memory_bank.size", "bn.group_size", "shuffle.block")  # said at the start of a run
NO_LOCK = "a bucket has no lock: two runs in one folder are not noticed, and would spoil each other's checkpoints"


class Result(NamedTuple):
    """Where a run left things."""

    workdir: Path
    checkpoint: int  # the newest checkpoint: its step
    was_complete: bool  # all steps were done before, so nothing was trained now
    seconds: float


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
    default: the config's kNN; leak alarm and key consistency stand beside them). Raises ConfigError for anything that
    cannot be run, before anything is compiled or written, and OSError where the last checkpoint could not be.
    """
    started, workdir = time.perf_counter(), places.at(workdir)
    if isinstance(config, Config) and config.log.tensorboard:
        check_installed()
    parts = assemble(config, encoder=encoder, source=source, recipe=recipe, pairs=pairs)
    check_hosts(parts)
    start = begin(parts, workdir, run_folder.check(parts, workdir), given=encoder is not None)
    if evaluators is None:
        evaluators = default_evaluators(parts)
    cadence = _cadence(parts)
    about = about_of(parts) | {k: v for k, v in (("init", start.about), ("origin", start.origin)) if v is not None}
    resident = parts.config.data.path == "resident"
    data = loader.resident(parts.source, parts.config.data.workers) if resident else {}

    parallel.barrier("checked")  # no process may find the folder half made by another
    with (
        stopping.ending(),
        run_folder.held(workdir, about, parts),
        Store(workdir / "checkpoints", keep=parts.config.checkpoint.keep) as store,
    ):
        found, lines = store.whole()
        step = found or 0
        lines = [NO_LOCK] * places.is_remote(workdir) + lines
        start = start._replace(warnings=start.warnings + lines)
        if step < cadence.total or run_folder.lacks(workdir, VERDICT, step):
            _train(parts, workdir, store, about, data, start, step=step, cadence=cadence, evaluators=evaluators)
    return Result(workdir, cadence.total, step >= cadence.total, time.perf_counter() - started)


def _train(
    parts: Parts,
    workdir: Path,
    store: Store,
    about: dict[str, Any],
    data: dict[str, Any],
    start: initial.Start,
    *,
    step: int,
    cadence: Cadence,
    evaluators: Sequence[Evaluator],
) -> None:
    """From step to the end: state, batches, log, and the loop over them."""
    config = parts.config
    init = parts.mechanism.init
    state = store.restore(step, parallel.abstract(init)) if step else initial.born(init, start)
    unlogged = store.about(step).get("unlogged") if step else None
    owed = bool(step) and run_folder.lacks(workdir, EVALUATED, step)  # read before this run writes to the log
    batches, placed = batches_of(parts), parallel.put_data(data)

    def save(step: int, state: Any, unlogged: Unlogged) -> None:
        parallel.check_identical(state)
        log.flush()  # what the checkpoint takes for logged
        store.save(step, state, about | {"unlogged": unlogged}, warn=lambda text: log.warn(step, text))

    silent = not parallel.is_first_process()
    events = Events(workdir / "tensorboard", first_step=step) if config.log.tensorboard and not silent else None
    with RunLog(
        workdir,
        total_steps=cadence.total,
        first_step=step,
        batch_size=config.batch_size,
        silent=silent,
        events=events,
        advice=_to_feed(config),
    ) as log:
        _announce(log, parts, start, step, cadence)
        if events is not None:
            _show(log, events, {"view_pairs": lambda: gallery.views(parts, step, gallery.Options(), "")}, step)
        told = Told(log, parts.source, step=step, every=config.log.every_steps)
        with told, stopping.Signals() as signals:
            try:
                state = run(
                    parts.mapped,
                    state,
                    told.batches(batches(first_step=step, last_step=cadence.total)),
                    placed,
                    first_step=step,
                    cadence=cadence,
                    log=log,
                    evaluations=_evaluations(parts, evaluators, batches, placed),
                    save=save,
                    signals=signals,
                    unlogged=unlogged,
                    owed=owed,
                    rate="optimizer.learning_rate",
                    patience=config.train.max_skipped,
                )
                with contextlib.suppress(OSError):  # raised when the store is left
                    # A signal until then would end a process whose checkpoint is not there yet.
                    store.wait(lambda text: log.warn(cadence.total, text))
            except (KeyboardInterrupt, stopping.Stopped):
                try:
                    store.wait()
                except OSError as error:
                    log.warn(step, str(error))
                log.say(f"stopped; the same call continues from step {store.latest() or 0}")
                raise
        if events is not None:
            _show(log, events, {"neighbours": lambda: _neighbours(parts, state)}, cadence.total)
        if not silent:
            log.flush()
            found = verdict.of(runs.read(workdir))
            log.write({"event": VERDICT, "step": cadence.total, **found._asdict()})
            log.say(f"verdict: {found.text}")


def _to_feed(config: Config) -> str:
    """What to do where training waits for its images."""
    if config.data.path == "resident":
        return ""
    workers, cores = config.data.workers, parallel.host_cores()
    more = f"raise data.workers ({workers}; this process may use {cores} cores)" if workers < cores else ""
    cut = "let the device cut the crops (data.canvas)" if not (config.data.canvas or parallel.on_cpu()) else ""
    smaller = "store images smaller (moco-jax prepare shrink)"
    ways = ", ".join(part for part in (more, cut, smaller) if part)
    return f": {ways}, or use data.path='resident' where they are of one size and fit"


def _evaluations(
    parts: Parts, evaluators: Sequence[Evaluator], batches: Callable[..., Iterator[Any]], data: Any
) -> list[Evaluation]:
    """What is evaluated and when: `evaluators`, the leak alarm, key consistency."""
    config, epoch = parts.config, parts.steps_per_epoch
    found = [Evaluation(config.eval.every_epochs * epoch, e) for e in evaluators]
    if block := checks.leak_block(config, parallel.device_count()):
        alarm = leak_alarm(config, parts.make, batches, data, block=block)
        found.append(Evaluation(config.leak.every_epochs * epoch, alarm))
    if parts.mechanism.stored is not None and config.consistency.every_epochs:
        found.append(
            Evaluation(config.consistency.every_epochs * epoch, key_consistency(parts.mechanism, batches, data))
        )
    return found


def _show(log: RunLog, events: Events, tasks: dict[str, Callable[[], Picture]], step: int) -> None:
    """Pictures into the event files; what cannot be made is said, and stops nothing."""
    made, missing = gallery.gather(tasks)
    for picture in made:
        events.picture(picture.name, picture.png, step)
    for name, why in missing.items():
        log.say(f"no picture for TensorBoard: {name}: {why}")


def _neighbours(parts: Parts, state: Any) -> Picture:
    options = gallery.Options()
    bank, queries = gallery.encoded(parts, gallery.frozen(parts, state.online), options.images)
    return gallery.neighbours(parts, bank, queries, options, "")


def about_of(parts: Parts) -> dict[str, Any]:
    """What the checkpoints of a run say of it: everything needed to continue, and to use its encoder."""
    return {
        **describe(to_json(parts.config), parts.objects),
        "values": parts.values._asdict(),
        "records": parts.records,
        "total_steps": _cadence(parts).total,
    }


def _cadence(parts: Parts) -> Cadence:
    config, epoch = parts.config, parts.steps_per_epoch
    return Cadence(
        total=config.train.epochs * epoch,
        per_call=config.train.steps_per_call,
        log=config.log.every_steps,
        save=config.checkpoint.every_epochs * epoch,
    )


def default_evaluators(parts: Parts) -> Sequence[Evaluator]:
    """The config's kNN, or none; raises ConfigError where it cannot be, such as for want of labels."""
    if not parts.config.eval.every_epochs:
        return []
    return [knn_monitor(parts.config, parts.encoder, parts.values, parts.objects["source"])]


def begin(parts: Parts, workdir: str | Path, step: int, *, given: bool = False) -> initial.Start:
    """What a run begins with, or began with if its folder is at `step`; `given`: its encoder is a user's own.

    Raises ConfigError for weights that cannot be read, do not fit, or are others than it began with.
    """
    stored, _, hint = run_folder.stored(places.at(workdir))
    where = f"{workdir}{hint}"
    start = initial.begin(parts.config, parts.encoder, parts.values, stored=stored, step=step, where=where, given=given)
    return start._replace(origin=(stored or {}).get("origin"))


def _announce(log: RunLog, parts: Parts, start: initial.Start, step: int, cadence: Cadence) -> None:
    """What is about to run, in a few lines."""
    config = parts.config
    log.say(f"encoder: {parts.encoder.label}, computing in {parallel.compute_dtype(config.model.dtype)}")
    log.say(
        f"data: {parts.source.name}, {len(parts.source)} images, {parts.steps_per_epoch} steps per epoch, "
        f"{config.train.epochs} epochs = {cadence.total} steps, batch {config.batch_size}"
    )
    chance = parts.mechanism.chance
    numbers = {k: v for k, v in flat(config).items() if k in ANNOUNCED}
    log.say(
        ", ".join(f"{k} = {v}" for k, v in numbers.items())
        + f"; loss at chance: {chance:.2f}, above it at first is normal"
    )
    for line in start.lines:
        log.say(line)
    for warning in parts.warnings + start.warnings:
        log.say(f"warning: {warning}")
    if parallel.process_count() > 1:
        log.say(
            f"a process that dies ends the others within {config.train.heartbeat_seconds} s, after a long message of "
            "JAX's; the same command then goes on from the newest checkpoint"
        )
    log.say((f"continuing at step {step}" if step else "starting") + "; the step is compiled first")
    log.write(
        {
            "event": "start",
            "step": step,
            "devices": parallel.describe(),
            "encoder": parts.encoder.label,
            "images": len(parts.source),
            "chance": chance,
            "warnings": parts.warnings + start.warnings,
            **({} if start.about is None else {"init": start.about}),
        }
    )
