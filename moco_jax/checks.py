"""Numbers that must fit each other, checked before anything is compiled or written; and what None resolves to."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from moco_jax import dictionary
from moco_jax.config import SECTIONS, Config, ConfigError, flat, unknown

FREE = (
    "data.data_dir",
    "data.label_feature",  # labels are for watching alone
    "data.folder",
    "data.manifest",
    "data.array",
    "data.workers",
    "data.max_bad_fraction",  # how many bad files are too many; which image stands in for one does not depend on it
    "eval.",
    "leak.",
    "consistency.",
    "checkpoint.",
    "log.",
    "queue.chunk",  # memory against time, as micro-batches: another order of sums
    "train.init_from",  # a path: what it leads to is compared by `initial.begin`
    "train.microbatch_size",
    "train.max_skipped",
    "train.heartbeat_seconds",
    "train.steps_per_call",
)

SEEN = 1.5  # eval.resize over views.size from which the centre is little of an image; 256 over 224 is 1.14
PAIRS = ("same_image", "same_group")
POSITIVE: tuple[str, ...] = ("batch_size", "views.size", "model.width", "model.dim", "moco.temperature", "train.epochs")
POSITIVE += ("end_to_end.temperature", "memory_bank.temperature", "memory_bank.size")
POSITIVE += ("queue.chunk", "moco.nce_batches", "memory_bank.nce_batches")
POSITIVE += ("train.microbatch_size", "train.steps_per_call", "train.max_skipped", "train.heartbeat_seconds")
POSITIVE += ("eval.k", "eval.temperature", "eval.resize")
POSITIVE += ("eval.batch_size", "checkpoint.every_epochs", "checkpoint.keep", "log.every_steps", "data.workers")
AT_LEAST_ZERO: tuple[str, ...] = ("bn.group_size", "shuffle.block", "eval.every_epochs")
AT_LEAST_ZERO += ("optimizer.learning_rate", "optimizer.weight_decay", "leak.every_epochs", "consistency.every_epochs")
SHARES: tuple[str, ...] = ("moco.momentum", "memory_bank.momentum", "optimizer.momentum", "leak.margin")
SHARES += ("data.max_bad_fraction",)


def resolve(config: Config, records: int) -> Config:
    """The config with queue.size, memory_bank.size and shuffle.block as numbers.

    They are functions of the data and the global batch alone.
    """
    out = config
    if config.queue is not None and config.queue.size is None:
        out = dataclasses.replace(
            out, queue=dataclasses.replace(config.queue, size=dictionary.default_queue(config, records))
        )
    if config.memory_bank is not None and config.memory_bank.size is None:
        bank = dataclasses.replace(config.memory_bank, size=dictionary.default_drawn(records))
        out = dataclasses.replace(out, memory_bank=bank)
    if config.shuffle is not None and config.shuffle.block is None:
        block = default_block(config.batch_size, config.bn.group_size)
        out = dataclasses.replace(out, shuffle=dataclasses.replace(config.shuffle, block=block))
    return out


def default_block(batch_size: int, group_size: int) -> int:
    """Largest divisor of the global batch up to 256 that is two groups or more; 0 where there is none."""
    if group_size == 0:
        return 0
    fits = (
        b for b in range(min(batch_size, 256), 2 * group_size - 1, -1) if batch_size % b == 0 and b % group_size == 0
    )
    return next(fits, 0)


def check(config: Config, *, records: int, devices: int, name: str = "the data set") -> list[str]:
    """Raises ConfigError at the first number of a resolved config that does not fit; returns warnings."""
    check_ranges(config)
    if config.batch_size % devices:
        raise ConfigError(
            f"batch_size {config.batch_size} over {devices} devices leaves {config.batch_size % devices} over; "
            f"use {_fitting(config, records, devices)}"
        )
    if records < config.batch_size:
        raise ConfigError(
            f"batch_size {config.batch_size} is more than the {records} images of {name}: an "
            f"epoch has no step; use {_fitting(config, records, devices)}"
        )
    warnings = _check_groups(config, records, devices)
    warnings += _check_shuffle(config, config.batch_size // devices)
    _check_microbatch(config, config.batch_size // devices)
    return warnings + dictionary.check(config, records, name) + _check_evaluation(config)


def _check_evaluation(config: Config) -> list[str]:
    """A warning where the centre crop of evaluation sees little of an image."""
    resize, size = config.eval.resize, config.views.size
    if resize is None or resize <= SEEN * size:
        return []
    return [
        f"eval.resize {resize} with views.size {size}: kNN, features and reports see the centre {size / resize:.0%} of "
        f"the shorter side alone; {round(size * 8 / 7)} is what 256 is for 224 pixels, and None is the whole side"
    ]


def check_ranges(config: Config) -> None:
    """Raises ConfigError for a value that no data and no hardware could make right."""
    for name in {s for sections in SECTIONS.values() for s in sections}:
        if (getattr(config, name) is None) == (name in SECTIONS.get(config.mechanism, ())):
            raise ConfigError(
                f"mechanism {config.mechanism!r} and section {name!r} do not belong together; begin with config.page()"
            )
    values = flat(config)
    for name in POSITIVE:
        if values.get(name) is not None and not values[name] > 0:
            raise ConfigError(f"{name} must be above 0, not {values[name]}")
    for name in AT_LEAST_ZERO:
        if values.get(name) is not None and not values[name] >= 0:
            raise ConfigError(f"{name} must be 0 or more, not {values[name]}")
    for name in SHARES:
        if name in values and not 0 <= values[name] <= 1:
            raise ConfigError(f"{name} must lie in 0..1, not {values[name]}")
    for name, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
            raise ConfigError(f"{name} must be finite, not {value}")
    rising = (0, *config.optimizer.milestones)
    if any(b <= a for a, b in itertools.pairwise(rising)):
        raise ConfigError(f"optimizer.milestones must rise from 1 on, not {config.optimizer.milestones}")
    if config.eval.resize is not None and config.eval.resize < config.views.size:
        raise ConfigError(
            f"eval.resize {config.eval.resize} is less than views.size {config.views.size}: the centre crop does not "
            f"fit; use {config.views.size} or more, or None"
        )
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed must lie in 0..2**32 - 1, not {config.seed}")
    if config.data.path not in ("resident", "streamed"):
        raise unknown("data.path", config.data.path, ("resident", "streamed"))
    if config.data.canvas and config.data.path != "streamed":
        raise ConfigError(f"data.canvas {config.data.canvas} is for data.path='streamed'; use 0")
    if config.data.canvas and config.data.canvas < 2 * config.views.size:
        raise ConfigError(
            f"data.canvas {config.data.canvas} must hold two views of views.size {config.views.size} side by side: use "
            f"{2 * config.views.size} or more, or 0 to cut on the host"
        )
    if config.data.pairs not in PAIRS:
        raise unknown("data.pairs", config.data.pairs, PAIRS)
    if config.data.max_gap is not None and (config.data.max_gap < 1 or config.data.pairs != "same_group"):
        raise ConfigError(
            f"data.max_gap {config.data.max_gap} with data.pairs={config.data.pairs!r}: a gap is 1 place or more "
            "between two images of data.pairs='same_group'; use such a one, or None"
        )
    if config.eval.feature not in ("backbone", "head"):
        raise unknown("eval.feature", config.eval.feature, ("backbone", "head"))


def _fitting(config: Config, records: int, devices: int, called: str = "") -> str:
    """Batch sizes near the one asked for that give every device whole groups, and the data set allows, in words.

    `called` goes before them, where there are any.
    """
    unit = devices * (config.bn.group_size or 1)
    below = min(config.batch_size, records) // unit * unit
    fits = [b for b in (below, below + unit) if 0 < b <= records]
    return (
        called + " or ".join(map(str, fits))
        if fits
        else f"a bn.group_size below {config.bn.group_size}, or more images"
    )


def _check_groups(config: Config, records: int, devices: int) -> list[str]:
    """n images per device and a batch-norm group divide one another."""
    n, group = config.batch_size // devices, config.bn.group_size or config.batch_size
    if (n % group and group % n) or config.batch_size % group:
        smaller = math.gcd(n, group)
        if smaller == config.batch_size and smaller % 2 == 0:  # one group of all leaves nothing to shuffle
            smaller //= 2
        raise ConfigError(
            f"batch_size {config.batch_size} over {devices} devices gives {n} images each, which bn.group_size {group} "
            f"neither divides nor is divided by; use {_fitting(config, records, devices, 'batch_size ')}"
            + (f", or bn.group_size {smaller}" if smaller > 1 else "")
        )
    if group > n:
        return [
            f"bn.group_size {group} spans {group // n} devices of {n} images: exact, but each batch norm now costs "
            "about three small all-reduces; a larger batch or fewer devices avoid them"
        ]
    return []


def _check_shuffle(config: Config, n: int) -> list[str]:
    if config.shuffle is None:
        return []
    block, group = config.shuffle.block or 0, config.bn.group_size or config.batch_size
    if block == 0:
        if config.bn.group_size == 0:
            return []
        return [
            "shuffle.block is 0: query and key of an image share batch statistics, which lets the encoder solve the "
            "pretext task by them (pretext accuracy goes to 100 %, features stop improving); set shuffle.block to a "
            f"divisor of batch_size that holds two or more groups of {group}, make bn.group_size smaller or the batch "
            "larger"
        ]
    if block % group or block < 2 * group or config.batch_size % block or (n % block and block % n):
        raise ConfigError(
            f"shuffle.block {block} does not fit: it must hold two or more batch-norm groups of {group}, divide "
            f"batch_size ({config.batch_size}), and divide or be "
            f"divided by the {n} images of a device{_block_that_fits(config, n)}"
        )
    return []


def _block_that_fits(config: Config, n: int) -> str:
    block = next((b for b in _blocks(config, n) if b <= 256), 0)
    return f"; {block} does" if block else "; none does, use other numbers of images or devices"


def _blocks(config: Config, n: int) -> Iterator[int]:
    """Blocks that may be permuted with n images on a device, largest first; none without two groups in the batch."""
    group = config.bn.group_size or config.batch_size
    for block in range(config.batch_size, 2 * group - 1, -1):
        if not (config.batch_size % block or block % group or (n % block and block % n)):
            yield block


def leak_block(config: Config, devices: int) -> int:
    """The block in which the leak alarm draws anew, of a resolved config; 0 where there is nothing to permute.

    The largest block up to 256 that holds whole blocks of the run itself (the smallest above 256, where there is none):
    so it is the run's own block where that was None. 0 for a mechanism without a shuffle, with bn.group_size 0, and
    with one batch-norm group in the batch.
    """
    if config.shuffle is None:
        return 0
    fits = [b for b in _blocks(config, config.batch_size // devices) if b % (config.shuffle.block or 1) == 0]
    return next((b for b in fits if b <= 256), min(fits, default=0))


def _check_microbatch(config: Config, n: int) -> None:
    size, group = config.train.microbatch_size, config.bn.group_size or config.batch_size
    if size is None:
        return
    if group > n or config.bn.group_size == 0:
        raise ConfigError(
            f"train.microbatch_size {size} with bn.group_size {config.bn.group_size}: statistics over "
            f"{group} images need more than the {n} of one device at once; use a group that fits a micro-batch"
        )
    if n % size or size % group:
        raise ConfigError(
            f"train.microbatch_size {size} must divide the {n} images of a device and hold whole groups of "
            f"bn.group_size {group}; use {group} or a multiple that divides {n}"
        )


def check_same_run(config: Config, stored: Config, where: str) -> None:
    """Raises ConfigError naming the keys by which `config` is another run than the stored one of a folder."""
    ours, theirs = flat(config), flat(stored)
    if config.mechanism != stored.mechanism:  # its sections come and go with it
        ours, theirs = {"mechanism": config.mechanism}, {"mechanism": stored.mechanism}
    changed = {
        name: f"{name} {theirs.get(name)!r} -> {ours.get(name)!r}"
        for name in sorted(ours.keys() | theirs.keys())
        if not name.startswith(FREE) and ours.get(name) != theirs.get(name)
    }
    if changed:
        free = "where data lie, evaluation, logs, checkpoints and the hardware may change within a run"
        longer = "; its schedule ends with it, so it cannot be lengthened: another may begin from it (train.init_from)"
        told = ", ".join(changed.values()) + "; use another --workdir, or undo the change"
        raise ConfigError(
            f"{where} holds another run: {told} ({free}){longer if list(changed) == ['train.epochs'] else ''}"
        )


def check_same_records(records: Mapping[str, Any], stored: Mapping[str, Any] | None, where: str) -> None:
    """Raises ConfigError where the images of a run are others than when it began: a path may move, its content not.

    Checkpoints that are older than the fingerprint continue, and so do sources without one.
    """
    if stored is None or None in (old := stored["fingerprint"], new := records["fingerprint"]) or old == new:
        return
    have, had = records["count"], stored["count"]
    change = f"{abs(have - had)} {'more' if have > had else 'fewer'}" if have != had else "as many, but others"
    raise ConfigError(
        f"{where} holds a run on {had} images, and there are {have} now ({change}; names, order, groups or the size of "
        "a copy differ), so the number of an image would change its meaning: bring back the images it began with, or "
        "use another --workdir"
    )
