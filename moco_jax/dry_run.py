"""What a run would be, before it is one: parameters, memory, FLOPs, steps and hours. It writes nothing."""

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from moco_jax import config as schema
from moco_jax import costs, dictionary, parallel, places, pretrain, run_folder
from moco_jax.assembly import Parts, assemble, batches_of
from moco_jax.config import Config
from moco_jax.data import loader, order, sources

STEPS = 10  # timed, at least, unless they take longer than SECONDS
SECONDS = 20.0  # after which no further step is begun, while warming up and while timing


class Pace(NamedTuple):
    """How fast the first steps were."""

    seconds: float  # of a step, from one to the next
    waiting: float  # share of them spent on waiting for images
    steps: int  # measured


class Plan(NamedTuple):
    """What a dry run found out; None where the backend does not tell, or where nothing was measured."""

    devices: str
    encoder: str
    parameters: dict[str, int]  # backbone, head
    first_step: int  # where the folder's run would go on; 0: it begins
    total_steps: int
    resolved: dict[str, Any]  # what None stands for, by config key
    warnings: list[str]
    memory: costs.Memory | None
    flops_per_image: float | None
    compile_seconds: float
    pace: Pace | None
    hours: float | None  # of the steps that are left


def report(
    config: Config,
    workdir: str | Path,
    *,
    encoder: Any = None,
    source: sources.Source | None = None,
    recipe: Any = None,
    pairs: order.PairRule | None = None,
    say: Callable[[str], None] = print,
) -> Plan:
    """Compile the step of a run, time its first steps on its own images, and say what the whole would take.

    Takes what `moco_jax.train` takes and raises ConfigError where that would. The state is thrown away, and neither
    `workdir` nor anything else is written. `say` receives a line as soon as it is known.
    """
    workdir = places.at(workdir)
    with _digits_elsewhere(config) as config:
        parts = assemble(config, encoder=encoder, source=source, recipe=recipe, pairs=pairs)
        first_step = run_folder.check(parts, workdir)
        start = pretrain.begin(parts, workdir, first_step, given=encoder is not None)
        pretrain.default_evaluators(parts)  # labels asked for where there are none
        total = parts.config.train.epochs * parts.steps_per_epoch
        resolved, parameters = resolved_values(config, parts), count_parameters(parts)
        known = about(parts, workdir, first_step, total, resolved, parameters)
        for line in (*known, *start.lines, *(f"warning: {warning}" for warning in start.warnings)):
            say(line)
        host = batches_of(parts)
        begin = first_step if first_step < total else 0  # of a complete run: its first steps
        batch, images = first_batch(parts, host, begin), costs.abstract_images(parts)
        say("compiling the step ...")
        call, compile_seconds = costs.compile_call(parts, batch, images)
        memory, flops = costs.memory_of(call, parts, images), costs.flops_per_image(parts, batch, images)
        say(_memory_line(memory))
        for line in _about_logits(parts.config, memory):
            say(line)
        say(f"compute: {_amount(flops, 'FLOP')} per image and step: encoders, gradients, augmentation, logits")
        limit = parallel.memory_stats().get("bytes_limit")
        pace = None
        if memory is None or limit is None or memory.peak <= limit:
            pace = measure(parts, call, host, begin)
        hours = None if pace is None else (total - first_step) * pace.seconds / 3600
        say(_time_line(pace, hours, total - first_step, compile_seconds))
    bad = [parts.source.said(found, "so far")] if (found := parts.source.bad) else []
    for line in bad:
        say(f"warning: {line}")
    return Plan(
        parallel.describe(), parts.encoder.label, parameters, first_step, total, resolved, parts.warnings + bad,
        memory, flops, compile_seconds, pace, hours,
    )  # fmt: skip


def count_parameters(parts: Parts) -> dict[str, int]:
    """{"backbone", "head"}: numbers that training changes, of one encoder."""
    params = jax.eval_shape(parts.mechanism.init).online.params
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}


def resolved_values(given: Config, parts: Parts) -> dict[str, Any]:
    """{"queue.size": 512, ...}: what each key that is None, or "auto", stands for in this run."""
    asked, got = schema.flat(given), schema.flat(parts.config)
    size, values = parts.config.views.size, parts.values
    meanings = {
        "data.channels": f"{values.channels}, as stored",
        "data.range": (values.low, values.high),
        "train.microbatch_size": f"{parts.config.batch_size // parallel.device_count()}, all of a device at once",
        "eval.resize": size,
    }
    out = {key: got[key] for key, value in asked.items() if value is None and got[key] is not None}
    out |= {key: meaning for key, meaning in meanings.items() if asked[key] is None}
    if asked["model.dtype"] == "auto":
        out["model.dtype"] = str(parallel.compute_dtype("auto"))
    return out


def first_batch(parts: Parts, host: Callable[..., Iterator[Any]], step: int) -> Any:
    """The batch of the call that begins at `step`, on the devices."""
    count = parts.config.train.steps_per_call
    return _placed(host(first_step=step, last_step=step + count), count)


def measure(parts: Parts, call: Any, host: Callable[..., Iterator[Any]], begin: int) -> Pace:
    """Time steps from `begin` on, on the run's own images and a state that is thrown away."""
    section, per_call = parts.config.data, parts.config.train.steps_per_call
    resident = section.path == "resident"
    data = parallel.put_data(loader.resident(parts.source, section.workers) if resident else {})
    ahead = max(2, section.workers)  # batches that threads have made before anybody waits for them
    warm, timed = (1, STEPS) if resident else (ahead, max(STEPS, 2 * ahead))  # counted in calls
    made = host(first_step=begin, last_step=begin + (warm + timed) * per_call)
    state = parallel.born(parts.mechanism.init)
    with contextlib.closing(made) as batches:  # type: ignore[type-var]  # a generator, whose threads end here
        state, _ = _timed(call, state, batches, data, per_call, warm)
        _, pace = _timed(call, state, batches, data, per_call, timed)
    return pace


def _timed(call: Any, state: Any, batches: Iterator[Any], data: Any, per_call: int, calls: int) -> tuple[Any, Pace]:
    """Some calls as the loop makes them: waited for one by one on CPU, once at the end elsewhere."""
    seconds = SECONDS if parallel.process_count() == 1 else math.inf  # processes must take the same number of steps
    began, waited, done = time.perf_counter(), 0.0, 0
    while done < calls and (done == 0 or time.perf_counter() - began < seconds):
        asked = time.perf_counter()
        batch = _placed(batches, per_call)
        waited += time.perf_counter() - asked
        state, _ = call(state, batch, data)
        if parallel.on_cpu():
            parallel.wait(state)
        done += 1
    parallel.wait(state)
    spent = time.perf_counter() - began
    return state, Pace(spent / (done * per_call), waited / spent, done * per_call)


def _placed(batches: Iterator[Any], count: int) -> Any:
    return parallel.put_batch(jax.tree.map(lambda *a: np.stack(a), *(next(batches) for _ in range(count))))


@contextlib.contextmanager
def _digits_elsewhere(config: Config) -> Iterator[Config]:
    """The config with digits, which are prepared where they are first asked for, in a folder that goes away again."""
    with tempfile.TemporaryDirectory() as folder:
        data, evaluation = config.data, config.eval
        if data.dataset == "digits":
            data = dataclasses.replace(data, data_dir=folder)
        if evaluation.data == "digits" or (evaluation.data is None and data.dataset == "digits"):
            evaluation = dataclasses.replace(evaluation, data_dir=folder)
        yield dataclasses.replace(config, data=data, eval=evaluation)


def about(
    parts: Parts, workdir: Path, first_step: int, total: int, resolved: dict[str, Any], parameters: dict[str, int]
) -> Iterator[str]:
    """What is known before anything is compiled, line by line."""
    yield "dry run: nothing is written"
    yield f"devices: {parallel.describe()}"
    counts = ", ".join(f"{count:,} in the {name}" for name, count in parameters.items())
    again = "" if jax.eval_shape(parts.mechanism.init).target is None else " (the target holds as many again)"
    yield f"encoder: {parts.encoder.label}; parameters: {counts}{again}"
    config = parts.config
    yield (
        f"data: {parts.source.name}, {len(parts.source)} images, {parts.steps_per_epoch} steps per epoch, "
        f"{config.train.epochs} epochs = {total} steps, batch {config.batch_size}"
    )
    if first_step >= total:
        yield f"{workdir} holds this run, complete: all {total} steps are done"
    elif first_step:
        yield f"{workdir} holds this run: it would continue from step {first_step} of {total}"
    else:
        yield f"{workdir} holds no checkpoint: the run would begin at step 0 of {total}"
    yield "what None and auto stand for: " + "; ".join(f"{key} = {value}" for key, value in resolved.items())
    yield from (f"warning: {warning}" for warning in parts.warnings)


def _memory_line(memory: costs.Memory | None) -> str:
    limit = parallel.memory_stats().get("bytes_limit")
    if memory is None:
        return "memory: not known, the compiler of these devices does not tell"
    peak, state, images, workspace = (_amount(n, "B") for n in (memory.peak, *memory))
    line = (
        f"memory of each device: {peak} at the peak of a step "
        f"(state {state}, resident images {images}, batch and workspace {workspace})"
    )
    if limit is None:
        return f"{line}; how much it has is not known"
    if memory.peak <= limit:
        return f"{line}, of {_amount(limit, 'B')}"
    return (
        f"{line}; warning: it has {_amount(limit, 'B')}: use a smaller batch_size, or train.microbatch_size where the "
        "mechanism and its loss take one, or data.path='streamed'"
    )


def _about_logits(config: Config, memory: costs.Memory | None) -> Iterator[str]:
    """A line where all logits of a queue, of which the loss holds a few copies, are an eighth of the memory."""
    queue, moco = config.queue, config.moco
    if memory is None or queue is None or queue.size is None or queue.chunk or moco is None or moco.loss != "infonce":
        return
    rows = config.train.microbatch_size or config.batch_size // parallel.device_count()
    rows *= len(dictionary.key_views(config))
    if (logits := 4 * rows * queue.size) >= memory.peak / 8:
        chunk = dictionary.largest_chunk(queue.size, min(65536, max(queue.size // 4, 1)))
        way = f"queue.chunk={chunk}" if chunk else "a queue.size with larger divisors, and queue.chunk,"
        yield (
            f"logits of {rows} queries and {queue.size} keys take {_amount(logits, 'B')} of it, several times over: "
            f"{way} would never hold them all"
        )


def _time_line(pace: Pace | None, hours: float | None, left: int, compile_seconds: float) -> str:
    compiled = f"compiling took {compile_seconds:.0f} s"
    if pace is None or hours is None:
        return f"time: not measured, as a step does not fit; {compiled}"
    line = (
        f"time: {pace.seconds:.3g} s per step ({pace.steps} steps measured, {pace.waiting:.0%} of it waiting for "
        f"images); {left} steps: {hours:.3g} hours, without evaluation and checkpoints; {compiled}"
    )
    if pace.waiting > 0.3:
        line += "; warning: images come too slowly, see data.workers"
    return line


def _amount(value: float | None, unit: str) -> str:
    """A number with a decimal prefix, such as 1.23 GB."""
    if value is None:
        return "not known"
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
