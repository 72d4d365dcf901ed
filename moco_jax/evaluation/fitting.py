"""A classifier fitted in a folder, from where it was left, or in memory; and what it is fitted to."""

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moco_jax import loop, parallel, protocols, stopping, views
from moco_jax.checkpoints.store import Store, describe, exclusive, read_json, write_json
from moco_jax.config import ConfigError
from moco_jax.core import schedules
from moco_jax.data import loader, sources
from moco_jax.evaluation import classifier
from moco_jax.evaluation.loading import Loaded
from moco_jax.logs import RunLog

History = dict[int, dict[str, Any]]  # {step: numbers of evaluations}: saved with the state, as a log may be cut short
FREE = ("data.data_dir", "data.workers", "save_every_epochs", "queries", "bank")  # settings that change no number
BEGUN = "evaluation.json"  # what a folder of checkpoints answers; written before the first of them
WORDS = {"encoder": "another encoder", "data": "other images or labels", "drawn": "other labels used"}


class Plan(NamedTuple):
    """How many steps, over which records, in batches of how many."""

    rows: np.ndarray  # (M,) records that are fitted to
    batch_size: int
    steps_per_epoch: int
    epochs: int

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch

    def cadence(self, save_every_epochs: int) -> loop.Cadence:
        """When the loop logs and saves."""
        log = self.steps_per_epoch * max(self.epochs // 10, 1)
        return loop.Cadence(self.total, 1, log=log, save=save_every_epochs * self.steps_per_epoch)


class Images(NamedTuple):
    """Augmented images of labelled records, made inside a step."""

    of: Callable[[Any, Any, Any], Any]  # (batch, data, step) -> (n, S, S, C)
    data: dict[str, Any]  # what lives on the device: images, or nothing
    source: sources.Source | None  # where the host cuts views from, or None
    crop: Any
    size: int
    workers: int


def plan(rows: np.ndarray, *, batch_size: int, epochs: int, least_steps: int = 0, group_size: int = 1) -> Plan:
    """A plan for batches of that size, also where there are fewer rows: what a step computes depends on no devices.

    There are more epochs than that where `least_steps` takes more. Every device gets whole groups of `group_size`
    images, or a group whole devices. Raises ConfigError where it cannot be.
    """
    devices = parallel.device_count()
    unit = math.lcm(devices, group_size or 1)
    if batch_size % unit:
        raise ConfigError(
            f"batch_size {batch_size} over {devices} devices does not give them whole groups of {group_size or 1} "
            f"images; use a multiple of {unit}"
        )
    steps_per_epoch = -(-len(rows) // batch_size)
    return Plan(rows, batch_size, steps_per_epoch, max(epochs, -(-least_steps // steps_per_epoch)))


def schedule(
    settings: protocols.Linear | protocols.Fit, *, epochs: int, steps_per_epoch: int, section: str
) -> schedules.Schedule:
    """The schedule of a page, as a share of its rates; ConfigError for milestones that do not rise below `epochs`."""
    points = (0, *settings.milestones, epochs)
    if settings.milestones and any(b <= a for a, b in itertools.pairwise(points)):
        last = max(*settings.milestones, 1)
        scaled = tuple(round(0.8 * epochs * m / last) for m in settings.milestones)
        fits = all(b > a for a, b in itertools.pairwise((0, *scaled, epochs)))
        raise ConfigError(
            f"{section}milestones {settings.milestones} must rise from 1 on and lie below {section}epochs {epochs}"
            + (f", such as --config.{section}milestones='{scaled}'" if fits else "")
        )
    return schedules.named(
        settings.schedule,
        1.0,
        milestones=settings.milestones,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        section=section,
        factor=settings.milestone_factor,
    )


def images(loaded: Loaded, how: protocols.Views, source: sources.Source, *, seed: int, workers: int) -> Images:
    """Views of a source as a recipe says, on the path it says; centre views where there is no recipe."""
    config, seen = loaded.config, loaded.trained.preprocessing
    recipe: views.recipes.Recipe = (views.recipes.ViewRecipe(views.recipes.Crop((1.0, 1.0)), ()),)
    if how.recipe is not None:
        recipe = views.recipes.get(how.recipe, seen.channels)[:1]
    made = views.make(
        recipe,
        size=seen.size,
        low=seen.range[0],
        high=seen.range[1],
        mean=seen.mean,
        std=seen.std,
        dtype=np.dtype(seen.computed),
    )
    if how.recipe is None:
        batches = loader.centered(source, seen.view, batch_size=256, workers=workers)
        whole = {"images": np.concatenate([rows[:real] for rows, real in batches])}
        made = made._replace(raw=lambda batch, data, *_: (data["images"][batch["ids"][:, 0]],))
        return Images(classifier.views_of(made, seed), whole, None, None, seen.size, workers)
    path = how.path or config.data.path
    if path not in loader.PATHS:
        raise ConfigError(f"views.path must be one of {', '.join(loader.PATHS)}, not {path!r}")
    resident = path == "resident"
    data = loader.resident(source, workers) if resident else {}
    of = classifier.views_of(made, seed)
    return Images(of, data, None if resident else source, recipe[0].crop, seen.size, workers)


def seed_of(seed: int, draw: int) -> np.ndarray:
    """A draw's own seed, of the order of its images, their views and the classifier's start: () uint32.

    The first draw has `seed` itself, so that one draw is no other than none.
    """
    words = np.random.SeedSequence([seed, draw]).generate_state(1)
    return np.array(seed if draw == 0 else words[0], np.uint32)


def batches(seen: Images | None, planned: Plan, *, seed: int, workers: int) -> Callable[[int], Iterator[Any]]:
    """(first step) -> this process's host batches from there to the end."""
    return lambda first: loader.labelled_batches(
        None if seen is None else seen.source,
        None if seen is None else seen.crop,
        seed=seed,
        rows=planned.rows,
        batch_size=planned.batch_size,
        positions=parallel.positions(planned.batch_size),
        first_step=first,
        last_step=planned.total,
        size=0 if seen is None else seen.size,
        workers=workers,
    )


def in_folder(
    task: classifier.Task,
    step_fn: parallel.Step,
    from_step: Callable[[int], Iterator[Any]],
    data: dict[str, Any],
    planned: Plan,
    folder: Path,
    *,
    about: dict[str, Any],
    called: str,
    save_every_epochs: int,
    evaluations: Sequence[loop.Evaluation],
    start: tuple[Any, ...] = (),
) -> tuple[Any, History]:
    """The state after all steps from init(*start), of a mapped step and data in place, and what evaluations gave.

    Both are saved on the way, and continued: wherever a process was stopped, the numbers are those of one go. Raises
    ConfigError where the folder holds another evaluation than `about`.
    """
    silent = not parallel.is_first_process()
    cadence, history = planned.cadence(save_every_epochs), History()
    with stopping.ending(), alone(folder), Store(folder / "checkpoints", keep=1) as store:
        newest, lines = store.whole()
        step = newest or 0
        stored = store.about(step) if step else {"config": read_json(folder / BEGUN) or about}
        check_same(stored["config"], about, folder)
        if step:
            history |= {int(at): numbers for at, numbers in stored["history"].items()}
            state = store.restore(step, parallel.abstract(task.init))
        else:
            state = parallel.born(task.init, None, *start)
            keep(folder / BEGUN, about)
            if not silent:  # of a process that was stopped before its first checkpoint
                (folder / "log.jsonl").unlink(missing_ok=True)

        def save(step: int, state: Any, _: loop.Unlogged) -> None:
            parallel.check_identical(state)
            found = {"history": {str(at): numbers for at, numbers in history.items()}}
            store.save(step, state, describe(about, {}) | found, warn=lambda text: log.warn(step, text))

        noted = [e._replace(evaluator=_noted(e.evaluator, history)) for e in evaluations]
        with RunLog(
            folder, total_steps=planned.total, first_step=step, batch_size=planned.batch_size, silent=silent
        ) as log:
            for line in lines:
                log.warn(step, line)
            if step < planned.total:
                log.say(f"{called}: {f'continuing at step {step} of ' if step else ''}{planned.total} steps")
            with stopping.Signals() as signals:
                state = loop.run(
                    step_fn,
                    state,
                    from_step(step),
                    data,
                    first_step=step,
                    cadence=cadence,
                    log=log,
                    evaluations=noted,
                    save=save,
                    signals=signals,
                    owed=bool(step),  # a checkpoint holds the numbers of evaluations before its own
                )
        return parallel.host(state), history


def _noted(evaluator: loop.Evaluator, history: History) -> loop.Evaluator:
    """The evaluator, which also puts its numbers into `history`, under the state's step."""

    def evaluate(state: Any) -> Mapping[str, float | str]:
        found = evaluator(state)
        history.setdefault(int(parallel.host(state.step)), {}).update(found)
        return found

    return evaluate


def in_memory(
    step: parallel.Step,
    init: Callable[..., Any],
    all_batches: Iterator[Any],
    data: Any,
    planned: Plan,
    *start: Any,
    hear: Callable[[str], None] | None = None,
) -> Any:
    """The state after all steps from init(*start), of a mapped step and data in place; nothing is written.

    `hear` hears how far it is, some fifty times.
    """
    with RunLog(
        Path(), total_steps=planned.total, first_step=0, batch_size=planned.batch_size, silent=True, hear=hear
    ) as log:
        state = loop.run(
            step,
            parallel.born(init, None, *start),
            all_batches,
            data,
            first_step=0,
            cadence=loop.Cadence(planned.total, 1, log=max(planned.total // 50, 1), save=0),
            log=log,
            evaluations=(),
            save=lambda *_: None,
        )
    return parallel.host(state)


def alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a folder, made where it is not there, against another command at work in it: done by one of processes."""
    folder.mkdir(parents=True, exist_ok=True)
    return exclusive(folder) if parallel.is_first_process() else contextlib.nullcontext()


def keep(path: Path, content: dict[str, Any]) -> None:
    """Write a result, by one process of several."""
    if parallel.is_first_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)


def plain(settings: Any) -> Any:
    """Settings as JSON gives them back, so that they compare."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def check_same(stored: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    """Raises ConfigError naming all but FREE in which the evaluation that a folder holds is not the one asked for."""
    old, new = _flat(stored), _flat(asked)
    changed = [
        WORDS.get(key, f"{key} {old.get(key)!r} -> {new.get(key)!r}")
        for key in sorted(old.keys() | new.keys())
        if key not in FREE and old.get(key) != new.get(key)
    ]
    if old.get("protocol") != new.get("protocol"):
        changed = [f"protocol {old.get('protocol')!r} -> {new.get('protocol')!r}"]
    if changed:
        raise ConfigError(
            f"{folder} holds another evaluation: {', '.join(changed)}; use another --workdir, delete that folder, or "
            f"undo the change (only {', '.join(FREE)} may change)"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data.workers": value}; the section of settings has no name of its own."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        inner = "" if key == "settings" else f"{prefix}{key}."
        out |= _flat(value, inner) if isinstance(value, dict) else {prefix + key: value}
    return out
