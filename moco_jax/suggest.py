"""A config page for images that have been looked at: every key, with the reason where a value is not the default."""

import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from moco_jax import checks, config, dictionary, pages
from moco_jax.config import ConfigError
from moco_jax.data import files
from moco_jax.data.survey import Summary

FEWEST = 16  # images that two batch-norm groups of four leave two steps an epoch for
RESIDENT = 2 * 2**30  # bytes of images that are kept on the device without asking
STARVED = 1_000  # images; fewer are a trial
ASKED = 20  # percent of the training images whose labels kNN is to tell, where no other split has labels
SHORT = 10_000  # steps; a target that keeps .999 of itself has moved in a tenth of them


@dataclasses.dataclass(frozen=True)
class Images:
    """What a page is made for."""

    place: dict[str, str]  # the key of data that says where they are: {"folder": PATH}
    records: int  # of the training split
    summary: Summary
    channels: int | None  # data.channels
    shape: tuple[int, int] | None  # height and width, None if sizes differ
    shorter: int  # median of the shorter sides
    classes: int
    splits: dict[str, int]  # images by split
    labelled: frozenset[str]  # splits whose images all have labels
    grouped: bool
    workers: int  # cores


def resident_bytes(images: Images) -> int:
    """Memory of all training images in storage dtype; 0 where sizes differ, so that they cannot be resident."""
    if images.shape is None:
        return 0
    height, width = images.shape
    return images.records * height * width * len(images.summary.mean) * bytes_of(images.summary.kind.dtype)


def bytes_of(dtype: str) -> int:
    """Bytes of one stored value."""
    return {"uint8": 1, "uint16": 2, "float32": 4}[dtype]


def suggest(images: Images) -> tuple[ConfigDict, dict[str, str]]:
    """A page for these images, and by key why a value is what it is; ConfigError for too few of them."""
    if images.records < FEWEST:
        raise ConfigError(
            f"{images.records} images are too few to train on: {FEWEST} is the least, thousands are better"
        )
    page, why = config.page(), {}

    def choose(key: str, value: Any, reason: str) -> None:
        section, _, name = key.rpartition(".")
        (page[section] if section else page)[name], why[key] = value, reason

    _choose_data(images, choose)
    size = _choose_views(images, choose)
    _choose_model(images, size, choose)
    _choose_training(images, choose, page)
    _choose_evaluation(images, size, choose)
    return page, why


def _choose_data(images: Images, choose: Any) -> None:
    summary = images.summary
    low, high = 0.0, 255.0
    choose("data.dataset", None, "the images are files")
    for key, value in images.place.items():
        choose(f"data.{key}", value, "")
    choose("data.channels", images.channels, "mixed 8-bit images" if images.channels else "all alike, as stored")
    if summary.kind.dtype != "uint8":
        low, high = summary.low, summary.high
        if low == high:
            raise ConfigError(f"every value of the {images.records} images is {low:g}: there is nothing to tell apart")
        choose(
            "data.range", (low, high), f"measured over {images.records} images: look whether it is what 0 and 1 mean"
        )
    scaled = [
        tuple(round((v - shift) / (high - low), 4) for v in values)
        for shift, values in ((low, summary.mean), (0.0, summary.std))
    ]
    choose("data.mean", scaled[0], "measured")
    choose("data.std", tuple(max(v, 1e-4) for v in scaled[1]), "measured")
    size = resident_bytes(images)
    if 0 < size <= RESIDENT:
        choose("data.path", "resident", f"one size, {size / 2**20:,.0f} MiB on the device")
    else:
        choose("data.path", "streamed", "sizes differ" if size == 0 else f"{size / 2**30:,.1f} GiB in all")
    choose("data.workers", images.workers, "the cores there are")
    if images.grouped:
        choose("data.pairs", "same_image", "same_group takes another image of the same group as the positive")


def _choose_views(images: Images, choose: Any) -> int:
    channels = len(images.summary.mean)
    recipe = {1: "xray", 3: "moco_v2"}.get(channels, "bands")
    choose("views.recipe", recipe, f"{channels} channel{'s' if channels > 1 else ''}")
    size = 224 if images.shorter >= 224 else max(images.shorter // 8 * 8, 16)
    choose("views.size", size, f"the shorter sides' median is {images.shorter} pixels")
    return size


def _choose_model(images: Images, size: int, choose: Any) -> None:
    small = size <= 64
    choose("model.arch", "resnet18" if images.records < 100_000 else "resnet50", f"{images.records} images")
    choose("model.stem", "cifar" if small else "imagenet", f"views of {size} pixels")
    choose("model.width", 64, "as published")
    choose("model.head", "mlp", "MoCo v2")


def _choose_training(images: Images, choose: Any, page: ConfigDict) -> None:
    batch = min(256, 1 << ((images.records // 3).bit_length() - 1))
    choose("batch_size", batch, "at most a third of the images, so that the queue need not hold a key of each")
    group = min(32, batch // 2)
    choose("bn.group_size", group, "two groups or more, so that keys can be shuffled between them")
    rate, few = 0.03, batch < 256
    as_it_is = ", and taken as it is: digits and cifar10_small have 0.06 with 128" if few else ""
    choose("optimizer.learning_rate", rate, f"published for 256 images a step{as_it_is}")
    slow = f"times {batch} / 256 the rate would be {rate * batch / 256:.2g}, by which so short a run learns less"
    choose("optimizer.linear_scaling", False, slow if few else "")
    steps = page.train.epochs * (images.records // batch)
    momentum = 0.99 if steps < SHORT else 0.999
    choose("moco.momentum", momentum, f"{steps} steps; .999 is for runs of 10,000 and more" if steps < SHORT else "")
    choose("moco.temperature", 0.2, "MoCo v2")
    resolved = dictionary.default_queue(config.read(page), images.records)
    choose("queue.size", None, f"resolves to {resolved} with {images.records} images and batch {batch}")


def _choose_evaluation(images: Images, size: int, choose: Any) -> None:
    held_out = [s for s in files.HELD_OUT if images.splits.get(s)]
    unlabelled = [s for s in (files.TRAIN, *held_out) if s not in images.labelled]
    judged = next((s for s in held_out if s not in unlabelled), None)
    few = judged is None and images.records < 2 * images.classes
    if files.TRAIN in unlabelled or images.classes < 2 or few:
        why = f"no labels in {' and '.join(unlabelled)}" if files.TRAIN in unlabelled else "one class alone"
        why = f"{images.classes} classes of {images.records} images: most have one" if few else why
        choose("eval.every_epochs", 0, why)
        if held_out:
            choose("eval.split", held_out[0], "images that training never sees, for the neighbours in a report")
        return
    bank = images.records
    if judged:
        choose("eval.split", judged, f"{images.splits[judged]} labelled images that training never sees")
    else:
        bank = images.records * (100 - ASKED) // 100
        none = f"no labels in {' and '.join(unlabelled)}" if unlabelled else "no split val or test"
        share, rest = f"{files.TRAIN}[:{100 - ASKED}%]", f"{files.TRAIN}[{100 - ASKED}%:]"
        choose("eval.bank_split", share, f"{none}: a part of {files.TRAIN} lends its labels")
        choose("eval.split", rest, "they are to tell the labels of the rest, which training sees without them")
    choose("eval.k", min(200, max(bank // images.classes, 1)), "about the images of a class")
    resize, why = size * 8 // 7, "as 256 for 224"
    if (resize - size) % 4 == 3:
        resize, why = resize + 1, f"{why}, and one more: of {resize} transformers would cut the centre elsewhere"
    choose("eval.resize", resize, why)


def plan(images: Images, page: ConfigDict) -> Iterator[str]:
    """What a run of this page would do, line by line."""
    resolved = checks.resolve(config.read(page), images.records)
    steps, keys = images.records // resolved.batch_size, resolved.queue.size if resolved.queue else 0
    yield (
        f"{images.records} images in batches of {resolved.batch_size}: {steps} steps per epoch (of "
        f"{steps * resolved.batch_size} images, others in each), {resolved.train.epochs} epochs = "
        f"{steps * resolved.train.epochs} steps"
    )
    yield (
        f"queue.size {keys}: the largest power of two up to a quarter of the images (at most 65,536), and at least the "
        f"{dictionary.keys_per_step(resolved)} keys of a step"
    )
    size = resident_bytes(images)
    yield (
        f"resident (all images on the device): {size / 2**20:,.1f} MiB"
        if size
        else "resident (all images on the device): not possible, sizes differ; streamed from the files instead"
    )
    yield f"recipe {resolved.views.recipe} at {resolved.views.size} pixels, {resolved.model.arch}"
    if images.records < STARVED:
        yield (
            f"warning: {images.records} images are few; contrastive training wants thousands, and starting from "
            "published weights (train.init_from), or supervised training, is often better here"
        )


def text(page: ConfigDict, why: dict[str, str], header: str) -> str:
    """The page as a Python file: every key with its value, its meaning, and the reason for the value."""
    lines = [f'"""{header.strip()}\n"""', "", "from moco_jax.config import page", "", "", "def get_config():"]
    lines += ['    """The config page."""', "    config = page()"]
    section = ""
    for key, value, meaning in pages.explained(page):
        if key == "mechanism":
            continue
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines.append("")
        if why.get(key):
            lines += textwrap.wrap(f"Here: {why[key]}.", 112, initial_indent="    # ", subsequent_indent="    # ")
        lines.append(f"    config.{key} = {value!r}  # {meaning}")
    return "\n".join([*lines, "", "    return config", ""])
