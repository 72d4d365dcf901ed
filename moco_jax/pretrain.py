"""A pretraining run: parts, loop, checkpoints, evaluation, in one folder."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moco_jax import checks, gallery, initial, parallel, stopping
from moco_jax.assembly import Parts, assemble, batches_of
from moco_jax.checkpoints.store import Store, describe, exclusive, read_json, write_json
from moco_jax.config import Config, ConfigError, flat, read_stored, to_json
from moco_jax.data import loader, opening, order, sources
from moco_jax.evaluation.consistency import key_consistency
from moco_jax.evaluation.leak import leak_alarm
from moco_jax.evaluation.monitor import knn_monitor
from moco_jax.events import Events, check_installed
from moco_jax.logs import EVALUATED, VERDICT, RunLog, says
from moco_jax.loop import Cadence, Evaluation, Evaluator, Unlogged, run
from moco_jax.models import encoder as encoders
from moco_jax.reports import runs, verdict
from moco_jax.reports.curves import Picture

ANNOUNCED = ("queue.size", "memory_bank.size", "bn.group_size", "shuffle.block")  # said at the start of a run


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
    started = time.perf_counter()
    if isinstance(config, Config) and config.log.tensorboard:
        check_installed()
    parts = assemble(config, encoder=encoder, source=source, recipe=recipe, pairs=pairs)
    start = begin(parts, workdir, check_folder(parts, workdir), given=encoder is not None)
    workdir = Path(workdir)
    if evaluators is None:
        evaluators = default_evaluators(parts)
    cadence = _cadence(parts)
    about = about_of(parts) | {k: v for k, v in (("init", start.about), ("origin", start.origin)) if v is not None}
    resident = parts.config.data.path == "resident"
    data = loader.resident(parts.source, parts.config.data.workers) if resident else {}

    parallel.barrier("checked")  # no process may find the folder half made by another
    with (
        stopping.ending(),
        _folder(workdir, about),
        Store(workdir / "checkpoints", keep=parts.config.checkpoint.keep) as store,
    ):
        found, lines = store.whole()
        step = found or 0
        start = start._replace(warnings=start.warnings + lines)
        if step < cadence.total or _lacks(workdir, VERDICT, step):
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
    owed = bool(step) and _lacks(workdir, EVALUATED, step)  # read before this run writes to the log
    batches, placed = batches_of(parts), parallel.put_data(data)

    def save(step: int, state: Any, unlogged: Unlogged) -> None:
        parallel.check_identical(state)
        store.save(step, state, about | {"unlogged": unlogged}, warn=lambda text: log.warn(step, text))

    silent = not parallel.is_first_process()
    events = Events(workdir / "tensorboard", first_step=step) if config.log.tensorboard and not silent else None
    with RunLog(
        workdir, total_steps=cadence.total, first_step=step, batch_size=config.batch_size, silent=silent, events=events
    ) as log:
        _announce(log, parts, start, step, cadence)
        if events is not None:
            _show(log, events, {"view_pairs": lambda: gallery.views(parts, step, gallery.Options(), "")}, step)
        try:
            with stopping.Signals() as signals:
                state = run(
                    parts.mapped,
                    state,
                    batches(first_step=step, last_step=cadence.total),
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
        except (KeyboardInterrupt, stopping.Stopped):
            log.say(f"stopped; the same call continues from step {store.latest() or 0}")
            raise
        if events is not None:
            _show(log, events, {"neighbours": lambda: _neighbours(parts, state)}, cadence.total)
        if not silent:
            found = verdict.of(runs.read(workdir))
            log.write({"event": VERDICT, "step": cadence.total, **found._asdict()})
            log.say(f"verdict: {found.text}")


def _lacks(workdir: Path, event: str, step: int) -> bool:
    """Whether the log lacks an event of a step; one that is not there (of a run that was converted) lacks nothing."""
    return parallel.first_says((workdir / "log.jsonl").exists() and not says(workdir, event, step))


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


@contextlib.contextmanager
def _folder(workdir: Path, about: dict[str, Any]) -> Iterator[None]:
    """The run's folder, held by this run, with config.json; raises ConfigError where it cannot be written.

    A new folder goes again where the run ends in a ConfigError before its first checkpoint, such as an image unlike
    the others that only turns up in training: what the error asks to change would make it another run. One that was
    there, and empty, stays and is empty again.
    """
    if not parallel.is_first_process():
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            made = not workdir.exists()
            workdir.mkdir(parents=True, exist_ok=True)
            empty = not any(workdir.iterdir())
            held.enter_context(exclusive(workdir))
            write_json(workdir / "config.json", about)
        except OSError as error:
            reason = "it is a file" if workdir.is_file() else error.strerror
            raise ConfigError(f"cannot write to {workdir}: {reason}; give another --workdir") from None
        try:
            yield
        except ConfigError:
            if empty and not any((workdir / "checkpoints").glob("[0-9]*")):
                for path in list(workdir.iterdir()):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                if made:
                    workdir.rmdir()
            raise


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
    stored, _, hint = _stored(Path(workdir))
    where = f"{workdir}{hint}"
    start = initial.begin(parts.config, parts.encoder, parts.values, stored=stored, step=step, where=where, given=given)
    return start._replace(origin=(stored or {}).get("origin"))


def check_folder(parts: Parts, workdir: str | Path) -> int:
    """The newest checkpoint's step, 0 for none; raises ConfigError where the folder holds another run than `parts`."""
    if "://" in str(workdir):
        raise ConfigError(f"workdir {workdir} is no folder of this file system; mount the bucket and give its path")
    data, labelled = parts.config.data, parts.config.eval
    own = data.folder and Path(data.folder).expanduser().resolve()
    judged = labelled.data and opening.folder_of(labelled.data, labelled.data_dir or data.data_dir)
    for key, folder in (("data.folder", own), ("eval.data", judged)):
        if folder and Path(workdir).resolve().is_relative_to(folder):
            raise ConfigError(
                f"--workdir={workdir} lies in {key} {folder}: its pictures would be taken for images; give a --workdir "
                "outside of it"
            )
    workdir = Path(workdir)
    stored, step, hint = _stored(workdir)
    if stored is None:
        return 0
    try:
        checks.check_same_run(parts.config, read_stored(stored["config"]), f"{workdir}{hint}")
        checks.check_same_records(parts.records, stored.get("records"), f"{workdir}{hint}")
        objects = stored["objects"]
    except KeyError as error:
        raise ConfigError(f"{workdir}/config.json lacks {error}; delete it, or use another workdir") from None
    for name, label in objects.items():
        if parts.objects.get(name) != label:
            raise ConfigError(
                f"{workdir} holds a run with {name} {label or 'of the config'!r}, this one has "
                f"{parts.objects.get(name) or 'of the config'!r}: give the same object as {name}= to moco_jax.train"
            )
    return step or 0


def _stored(workdir: Path) -> tuple[dict[str, Any] | None, int | None, str]:
    """What a folder says of its run, at which checkpoint, and what to do where it has none; None: it holds no run."""
    step, stored = None, None
    if (workdir / "checkpoints").is_dir():
        with Store(workdir / "checkpoints", read_only=True) as store:
            step, stored = store.described()
    if stored is not None:
        return stored, step, ""
    # stopped before its first checkpoint, or no run at all
    return read_json(workdir / "config.json"), None, f" (it has no checkpoint yet: delete {workdir} to begin anew)"


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
    log.say(f"continuing at step {step}" if step else "starting")
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
