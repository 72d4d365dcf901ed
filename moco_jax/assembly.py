"""What a run is made of: a config and a user's objects, checked against data and hardware before anything compiles."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moco_jax import checks, dictionary, parallel, views
from moco_jax.config import Config, ConfigError
from moco_jax.core import schedules
from moco_jax.core.optimizers import sgd
from moco_jax.data import file_sources, loader, measured, opening, order, replacing, shrink, sources, tfds
from moco_jax.evaluation import encoder as frozen
from moco_jax.mechanisms import MECHANISMS, VIEWS
from moco_jax.models import encoder as encoders
from moco_jax.state import Facts, Mechanism


class Parts(NamedTuple):
    """Everything a run needs, made from a config and a user's objects."""

    config: Config  # resolved
    make: Callable[..., Mechanism]  # (config, *, permutation) -> the mechanism of these parts
    mechanism: Mechanism
    mapped: parallel.Step  # its step over all devices
    encoder: encoders.Encoder
    recipe: Any
    views: views.Views
    pairs: order.PairRule
    source: replacing.Replacing  # the training images, whose bad files are replaced
    values: frozen.Values
    steps_per_epoch: int
    warnings: list[str]
    objects: dict[str, str]  # labels of the user's objects, by argument
    records: dict[str, Any]  # how many images, and a fingerprint of them; None where they have no names


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
        images = opening.open_split(config.data, config.data.split)
    paired = pairs is not None or config.data.pairs != "same_image"
    groups = sources.groups_of(images) if paired else None  # a stand-in from the same group keeps a pair a pair
    whole = replacing.Replacing(images, config.data.max_bad_fraction, groups)
    facts = measured.measure(whole, config.data)
    objects = _labels(source, pairs)
    rule, warnings = (pairs, []) if pairs is not None else _pair_rule(config, images)
    config, more = _resolved(config, images, facts)
    given, recipe = recipe, _recipe(recipe, config, facts)
    dtype = parallel.compute_dtype(config.model.dtype)
    size = config.views.size
    if encoder is None:
        encoder = encoders.from_config(config.model, config.bn, channels=facts.channels, size=size, dtype=dtype)
    objects["encoder"] = encoder.label
    objects["recipe"] = "" if given is None else repr(recipe)  # of the views that are looked at
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
    _check_bank_fits(config, mechanism)
    mapped = parallel.map_step(mechanism.step, steps_per_call=config.train.steps_per_call)
    records = {"count": facts.records, "fingerprint": _fingerprint(images, facts, config, paired)}
    return Parts(
        config,
        make,
        mechanism,
        mapped,
        encoder,
        recipe,
        made,
        rule,
        whole,
        values,
        steps_per_epoch,
        more + warnings,
        objects,
        records,
    )


def _resolved(config: Config, images: sources.Source, facts: measured.Measured) -> tuple[Config, list[str]]:
    """The config with every None a number, and warnings; ConfigError where numbers, images and hardware do not fit."""
    if facts.shape is None and config.data.path == "resident":
        raise ConfigError(
            f"the images of {images.name} differ in size, so they cannot be resident: data.path='streamed'"
        )
    config = checks.resolve(config, facts.records)
    warnings = checks.check(config, records=facts.records, devices=parallel.device_count(), name=images.name)
    if not isinstance(images, tfds.TfdsSource):  # the size of a data set is known to whoever names it
        warnings += measured.enlarged(facts, config.views.size)
    return config, warnings


def _recipe(given: Any, config: Config, facts: measured.Measured) -> Any:
    """The views that the mechanism looks at, of the recipe that is given or the config's.

    ConfigError for a recipe of fewer views than that, or of more than two.
    """
    name, used = config.views.recipe, VIEWS[config.mechanism]
    recipe = views.recipes.get(name, facts.channels) if given is None else given
    if given is None and len(recipe) < used:
        pairs = sorted(n for n, r in views.recipes.RECIPES.items() if len(r) == 2)
        raise ConfigError(
            f"views.recipe={name!r} makes one view, for classifiers, and pretraining compares two: use one of "
            f"{', '.join(pairs)}"
        )
    if not used <= len(recipe) <= 2 or not all(isinstance(view, views.recipes.ViewRecipe) for view in recipe):
        raise ConfigError(f"a recipe is two ViewRecipe, one for each view that is compared, not {recipe!r}")
    return recipe[:used]


def _check_bank_fits(config: Config, mechanism: Mechanism) -> None:
    """ConfigError where the bank, and what a step draws from it, are more than a device has."""
    bank, limit = config.memory_bank, parallel.memory_limit()
    if bank is None or limit is None:
        return
    rows, features = (stored := jax.eval_shape(mechanism.init).memory.bank).shape
    n = config.train.microbatch_size or config.batch_size // parallel.device_count()
    held, drawn = rows * features * stored.dtype.itemsize, n * (bank.size or 0) * features * 4  # as float32
    if held + drawn > limit:
        half = "" if stored.dtype == jnp.bfloat16 else "memory_bank.dtype='bfloat16', "
        raise ConfigError(
            f"the bank of {rows} x {features} {stored.dtype} takes {held / 1e9:.2f} GB, and the {bank.size} features "
            f"drawn for each of {n} images {drawn / 1e9:.2f} GB, of the {limit / 1e9:.2f} GB of a device: use "
            f"{half}a smaller model.dim or memory_bank.size, a smaller train.microbatch_size or batch_size, or more "
            "devices; or mechanism 'moco', whose queue needs no row for every image"
        )


def _fingerprint(images: sources.Source, facts: measured.Measured, config: Config, paired: bool) -> str | None:
    """What may not change under the numbers of the records within a run, though the path to them may."""
    if config.data.array is not None and isinstance(images, file_sources.ArrayFile):
        return f"{facts.dtype} {images.images.shape}"
    found = sources.fingerprint(images, pairs=paired)
    copied = shrink.made_as(images.root.resolve()) if isinstance(images, file_sources.FileSource) else None
    return found if found is None or copied is None else f"{found} copied at {copied}"


def check_hosts(parts: Parts) -> None:
    """Raises ConfigError, in all processes, where they have not the same images under the same numbers.

    A process reads rows of its own from its own disk, and nothing else would tell. Images without names are counted.
    """
    name, counts = parts.source.name, parallel.gathered(parts.records["count"])
    mark = hashlib.sha256((parts.records["fingerprint"] or "").encode()).digest()[:3]
    names = parallel.gathered(int.from_bytes(mark))
    for process, (count, named) in enumerate(zip(counts, names, strict=True)):
        if (count, named) != (counts[0], names[0]):
            differ = f"{counts[0]:,} and {count:,}" if count != counts[0] else f"{count:,}, other ones"
            raise ConfigError(
                f"processes 0 and {process} do not see the same images of {name}: {differ}; each process reads its own "
                "share of every batch, so every host must hold the same files"
            )


def _pair_rule(config: Config, source: sources.Source) -> tuple[order.PairRule, list[str]]:
    """What data.pairs means for a source, and warnings; ConfigError for a group rule without groups."""
    if config.data.pairs == "same_image":
        return order.same_record, []
    groups = sources.groups_of(source)
    if groups is None:
        raise ConfigError(
            f"data.pairs='same_group' and {source.name} has no groups: give a manifest with a column group, a folder "
            "of groups or a source with a method groups(), or use data.pairs='same_image'"
        )
    lone, count = order.alone(groups)
    warning = (
        f"{lone} of the {count} groups of {source.name} hold one image, which is then paired with itself: data.pairs="
        "'same_group' does little here; look at the groups"
    )
    return order.same_group(groups, config.data.max_gap), [warning] * (2 * lone > count)


def _labels(source: Any, pairs: Any) -> dict[str, str]:
    """What a checkpoint says of a user's objects; "" where the config's own is used."""
    return {
        "source": "" if source is None else source.name,
        "pairs": "" if pairs is None else getattr(pairs, "__qualname__", type(pairs).__qualname__),
    }


def batches_of(parts: Parts) -> Callable[..., Iterator[Any]]:
    """(first_step=, last_step=) -> this process's host batches of those steps."""
    config = parts.config
    size = config.queue.size if config.queue else None
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
        canvas=config.data.canvas,
        pairs=parts.pairs,
        ring=order.Ring(size, dictionary.key_views(config)) if size else None,
    )
