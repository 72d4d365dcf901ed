"""Shipped pages: published values pinned, and every page runs one shrunken step."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_jax import checks, config, dictionary, load_encoder, pages, pretrain, protocols
from moco_jax.data import opening, order
from moco_jax.models import encoder as encoders
from moco_jax.views import recipes
from moco_jax.views.recipes import RECIPES, ColorJitter, Crop, GaussianBlur, Grayscale, HorizontalFlip
from tests import tiny

PAGES = sorted(p.stem for p in pages.folder().glob("*.py"))
EVALUATIONS = [p for p in PAGES if p.split("_")[0] in protocols.PROTOCOLS]
TRAINING = [p for p in PAGES if p not in EVALUATIONS]
CIFAR = Path(__file__).parents[2] / "shared" / "data" / "tfds"


def page(name):
    return config.read(pages.load(name))


def test_moco_v1_is_as_published():
    """Every value of the paper's ImageNet recipe, by number."""
    c = page("moco_v1_r50")
    assert (c.batch_size, c.train.epochs, c.views.size, c.bn.group_size) == (256, 200, 224, 32)
    assert (c.queue.size, c.moco.momentum, c.moco.temperature, c.moco.symmetric) == (65536, 0.999, 0.07, False)
    assert (c.model.arch, c.model.stem, c.model.width, c.model.head, c.model.dim) == (
        "resnet50",
        "imagenet",
        64,
        "linear",
        128,
    )
    o = c.optimizer
    assert (o.learning_rate, o.momentum, o.weight_decay, o.linear_scaling) == (0.03, 0.9, 1e-4, False)
    assert (o.schedule, o.milestones) == ("step", (120, 160))
    assert (c.data.mean, c.data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert checks.default_block(c.batch_size, c.bn.group_size) == 256
    for view in RECIPES[c.views.recipe]:
        assert view.crop == Crop((0.2, 1.0), (3 / 4, 4 / 3))
        assert view.ops == (Grayscale(0.2), ColorJitter(0.4, 0.4, 0.4, 0.4, p=1.0), HorizontalFlip(0.5))


def test_moco_v2_is_v1_with_the_papers_four_changes():
    """MLP head, temperature .2, more augmentation, cosine: `--mlp --moco-t 0.2 --aug-plus --cos`."""
    one, two = config.flat(page("moco_v1_r50")), config.flat(page("moco_v2_r50"))
    changed = {k: v for k, v in two.items() if one[k] != v}
    assert changed == {
        "model.head": "mlp",
        "moco.temperature": 0.2,
        "views.recipe": "moco_v2",
        "optimizer.schedule": "cosine",
        "optimizer.milestones": (),  # read by the step schedule alone
    }
    for view in RECIPES["moco_v2"]:
        assert view.ops == (
            ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            Grayscale(0.2),
            GaussianBlur(0.1, 2.0, p=0.5),
            HorizontalFlip(0.5),
        )


# Every hyper-parameter of the original's CIFAR-10 notebook, by our keys.
NOTEBOOK = {
    "mechanism": "moco",
    "batch_size": 512,
    "data.dataset": "cifar10",
    "data.split": "train",
    "data.data_dir": None,
    "data.channels": None,
    "data.mean": (0.4914, 0.4822, 0.4465),
    "data.std": (0.2023, 0.1994, 0.2010),
    "data.path": "resident",
    "views.recipe": "cifar_demo",
    "views.size": 32,
    "model.arch": "resnet18",
    "model.stem": "cifar",  # 3x3 of stride 1, no max-pool
    "model.width": 64,
    "model.head": "linear",
    "model.dim": 128,
    "bn.group_size": 64,  # 512 images in 8 splits
    "moco.momentum": 0.99,
    "moco.temperature": 0.1,
    "moco.symmetric": False,
    "queue.size": 4096,
    "queue.mask_same_image": False,
    "shuffle.block": 512,  # randperm of the batch
    "optimizer.learning_rate": 0.06,
    "optimizer.linear_scaling": False,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 5e-4,
    "optimizer.schedule": "cosine",
    "optimizer.milestones": (),
    "train.epochs": 200,
    "eval.every_epochs": 1,
    "eval.data": None,
    "eval.bank_split": "train",
    "eval.split": "test",
    "eval.k": 200,
    "eval.temperature": 0.1,
    "eval.feature": "head",
    "eval.resize": None,
}


def test_cifar10_demo_is_the_notebook():
    """Number by number; its recipe is pinned in tests/views/test_recipes.py. 50,000 images raise no warning."""
    c = page("cifar10_demo")
    assert {k: v for k, v in config.flat(c).items() if k in NOTEBOOK} == NOTEBOOK
    assert checks.check(checks.resolve(c, 50000), records=50000, devices=1) == []
    assert order.steps_per_epoch(50000, c.batch_size) == 97
    symmetric = dataclasses.replace(c, moco=dataclasses.replace(c.moco, symmetric=True))
    assert checks.check(checks.resolve(symmetric, 50000), records=50000, devices=1) == []
    assert c.queue.size % dictionary.keys_per_step(symmetric) == 0


def test_cifar10_small_never_sees_what_it_is_judged_on():
    """Training images and neighbours are one part of train, those that are classified another; test is not touched."""
    c = page("cifar10_small")
    assert (c.data.dataset, c.data.data_dir, c.eval.data, c.data.path) == ("cifar10", None, None, "resident")
    assert c.eval.bank_split == c.data.split
    parts = [re.fullmatch(r"train\[(\d*):(\d+)\]", split).groups() for split in (c.data.split, c.eval.split)]
    (first, last), (start, end) = [[int(n or 0) for n in part] for part in parts]
    assert first == 0 < last <= start < end <= 50000
    assert checks.check(checks.resolve(c, last), records=last, devices=1) == []


# page: channels, storage dtype, largest value, and keys that its recipe and data must agree on
OWN_IMAGES = {"photos": (3, "uint8", 255), "xray": (1, "uint16", 65535), "bands": (13, "uint16", 10000)}


@pytest.mark.parametrize("name", sorted(OWN_IMAGES))
def test_a_page_for_own_images_names_a_folder_and_asks_for_no_labels(name):
    """The folder is the one thing to change; nothing of it needs labels, TFDS or a number of images."""
    c = page(name)
    channels, dtype, top = OWN_IMAGES[name]
    assert (c.data.dataset, c.data.manifest, c.data.array, c.data.data_dir) == (None, None, None, None)
    assert c.data.folder and not c.data.folder.startswith("/") and c.data.path == "streamed"
    assert (c.eval.every_epochs, c.queue.size) == (0, None)
    assert len(c.data.mean) == len(c.data.std) == channels
    assert c.data.range == (None if dtype == "uint8" else (0.0, float(top)))
    recipes.get(c.views.recipe, channels)
    encoders.from_config(c.model, c.bn, channels=channels, size=c.views.size, dtype=np.dtype("float32"))
    assert checks.check(checks.resolve(c, 5000), records=5000, devices=1) == []


def photo(path, pixels):
    """A lossless colour file; every fourth is a JPEG, and the sixth is gray. Returns what should be read, if known."""
    number = int(path.name)
    if number % 4 == 3:
        Image.fromarray(pixels).save(path.with_suffix(".jpg"))
        return None
    picture = Image.fromarray(pixels).convert("L" if number == 5 else "RGB")
    picture.save(path.with_suffix(".png"))
    return np.asarray(picture.convert("RGB"))


def xray(path, pixels):
    """A gray PNG of 16 bits."""
    Image.fromarray(pixels[..., 0]).save(path.with_suffix(".png"))
    return pixels


def bands(path, pixels):
    """A TIFF of 13 channels, pixel by pixel."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is an extra")
    tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack", planarconfig="contig")
    return pixels


WRITERS = {"photos": photo, "xray": xray, "bands": bands}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OWN_IMAGES))
def test_a_page_trains_on_own_images(name, tmp_path):
    """From a folder: files of several sizes, every value as written, two steps by the page's path, range and recipe.

    The net is one convolution. Colour, gray and JPEG together make three channels; 16 bits stay 16; and data.range
    reaches the stored encoder.
    """
    folder = tmp_path / "images"
    folder.mkdir()
    channels, dtype, top = OWN_IMAGES[name]
    rng = np.random.default_rng(0)
    made = [(rng.random((20 + i % 3, 24 - i % 5, channels)) * top).astype(dtype) for i in range(32)]  # (H, W, C)
    written = [WRITERS[name](folder / str(i), pixels) for i, pixels in enumerate(made)]
    c = shrunken(page(name), batch_size=16, epochs=1)
    c = dataclasses.replace(
        c, data=dataclasses.replace(c.data, folder=str(folder)), views=dataclasses.replace(c.views, size=tiny.SIZE)
    )
    source = opening.open_split(c.data, c.data.split)
    stored = [source[i] for i in range(len(source))]
    for pixels, image in zip(written, stored, strict=True):
        assert (image.shape[2], image.dtype) == (channels, dtype)
        assert pixels is None or np.array_equal(image, pixels)

    run, small = tmp_path / "run", tiny.small_encoder(c, channels)
    assert pretrain.train(c, run, encoder=small).checkpoint == 2
    encoder = load_encoder(run, encoder=small)
    expects = encoder.preprocessing
    assert (expects.channels, expects.dtype, expects.range) == (channels, dtype, (0, top))
    features = encoder.features(np.stack([image[: tiny.SIZE, : tiny.SIZE] for image in stored]))["backbone"]
    assert features.shape == (32, 4) and np.isfinite(features).all() and features.std(0).max() > 0


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.exists(), reason=f"CIFAR-10 is not at {CIFAR}")
def test_cifar10_demo_trains_on_the_real_images(tmp_path):
    """A few steps without the network on what TFDS's own builder prepared, resident, and kNN on its labels."""
    c = shrunken(page("cifar10_demo"), batch_size=32, epochs=1)
    data = dataclasses.replace(c.data, data_dir=str(CIFAR), split="train[:96]")
    monitor = dataclasses.replace(
        c.eval, bank_split="train[:250]", split="train[40000:40100]", every_epochs=1, batch_size=50
    )
    result = pretrain.train(dataclasses.replace(c, data=data, eval=monitor), tmp_path)
    assert result.checkpoint == 3
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (knn,) = (row["knn_top1"] for row in rows if "knn_top1" in row)
    assert 0.05 < knn < 0.5  # of ten classes
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)


def shrunken(c, *, batch_size, epochs):
    """The page with tiny views, net, batch and queue; everything else is its own."""
    return dataclasses.replace(
        c,
        batch_size=batch_size,
        views=dataclasses.replace(c.views, size=16),
        bn=config.BatchNorm(2),
        queue=config.Queue(batch_size),
        shuffle=config.Shuffle(8),
        model=dataclasses.replace(c.model, arch="resnet_tiny", width=4, dim=8),
        train=dataclasses.replace(c.train, epochs=epochs),
        leak=config.Leak(every_epochs=0),
        consistency=config.Consistency(every_epochs=0),
    )


OF_EACH_KIND = ("moco_v2_r50", "end_to_end_r50", "memory_bank_r50")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in OF_EACH_KIND else pytest.mark.long)
        for name in TRAINING
        if name not in OWN_IMAGES
    ],
)
def test_every_page_runs_a_shrunken_step(name):
    """Its own mechanism, recipe, schedule and head, on tiny images, net, batch and queue."""
    c = page(name)
    channels = len(c.data.mean)
    c = dataclasses.replace(
        c,
        batch_size=16,
        bn=config.BatchNorm(4),
        queue=config.Queue(40),
        shuffle=config.Shuffle(8),
        model=dataclasses.replace(c.model, arch="resnet_tiny", width=4, dim=8),
    )
    stored = tiny.images(channels)
    run = tiny.run(tiny.mechanism(c, stored, RECIPES[c.views.recipe]), stored, batch_size=16, steps=2)
    assert run.metrics["loss"] > 0


def test_digits_default_raises_no_warning():
    """The first run that anybody sees."""
    c = checks.resolve(page("digits"), 1200)
    assert checks.check(c, records=1200, devices=1) == []


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_page_of_an_evaluation_reads(name):
    """Complete and typed, as the protocol that its name begins with."""
    kind = protocols.PROTOCOLS[name.split("_")[0]]
    assert isinstance(protocols.read(pages.load(name), kind), kind)


def evaluation(name):
    return protocols.read(pages.load(name), protocols.PROTOCOLS[name.split("_")[0]])


def test_linear_imagenet_is_main_lincls():
    """Every number of the original's evaluation, and its views."""
    s = evaluation("linear_imagenet")
    assert (s.learning_rates, s.momentum, s.weight_decay, s.batch_size, s.epochs) == ((30.0,), 0.9, 0.0, 256, 100)
    assert (s.schedule, s.milestones, s.feature, s.test_every_epochs) == ("step", (60, 80), "backbone", 1)
    assert (s.views.recipe, s.views.size, s.views.resize, s.data.test_split) == ("supervised", 224, 256, "validation")
    (view,) = RECIPES[s.views.recipe]
    assert (view.crop, view.ops) == (Crop((0.08, 1.0), (3 / 4, 4 / 3)), (HorizontalFlip(0.5),))
    small = evaluation("linear_cifar10")
    assert (small.learning_rates, small.epochs, small.weight_decay, small.views.size) == ((30.0,), 100, 0.0, None)


def test_finetune_imagenet_is_as_published():
    """The rates of MoCo v1's appendix; 1 % and 10 % of the labels as OpenSelfSup has them."""
    whole, one, ten = (evaluation(f"finetune_imagenet{name}").fit for name in ("", "_1percent", "_10percent"))
    assert (whole.learning_rate, whole.head_learning_rate, whole.scratch_learning_rate) == (0.03, 0.03, 0.1)
    assert (whole.batch_size, whole.epochs, whole.milestones, whole.milestone_factor) == (256, 100, (30, 60, 90), 0.1)
    assert (one.batch_size, one.epochs, one.milestones, one.milestone_factor) == (256, 20, (12, 16), 0.2)
    assert (one.learning_rate, one.head_learning_rate, one.weight_decay, one.group_size) == (0.01, 0.1, 5e-4, 0)
    assert ten == dataclasses.replace(one, weight_decay=1e-4)
    labels = [evaluation(f"finetune_imagenet_{name}").labels for name in ("1percent", "10percent")]
    assert labels == ["1%", "10%"]


@pytest.mark.parametrize("name", ["", "_digits", "_cifar10"])
def test_a_table_fine_tunes_as_the_page_of_fine_tuning_does(name):
    """One set of rates and views for both commands."""
    tuned, table = evaluation(f"finetune{name.replace('_cifar10', '')}"), evaluation(f"transfer{name}")
    assert (table.fit, table.views) == (tuned.fit, tuned.views)


def test_the_readme_example_is_a_config_that_reads():
    """The Python block of README.md up to training: its keys exist, and its numbers fit 300 images."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    lines = [line for line in block.splitlines() if line.startswith(("c.", "c ="))]
    names = {"config": config, "images": np.zeros((300, 40, 40, 2), np.uint16)}
    exec("\n".join(lines), names)
    c = checks.resolve(config.read(names["c"]), 300)
    assert checks.check(c, records=300, devices=1) == []
