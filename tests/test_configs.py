"""Shipped pages: published values pinned, and every page runs one shrunken step."""

import dataclasses

import pytest

from moco_jax import checks, config, pages
from moco_jax.views.recipes import RECIPES, ColorJitter, Crop, GaussianBlur, Grayscale, HorizontalFlip
from tests import tiny

PAGES = sorted(p.stem for p in pages.folder().glob("*.py"))
TRAINING = [p for p in PAGES if not p.startswith("linear")]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
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


@pytest.mark.parametrize("name", [p for p in PAGES if p.startswith("linear")])
def test_every_probe_page_reads(name):
    """Complete and typed."""
    config.read_probe(pages.load(name))


def test_the_readme_example_is_a_config_that_reads():
    """The Python block of README.md up to training: its keys exist, and its numbers fit 300 images."""
    import re
    from pathlib import Path

    import numpy as np

    text = (Path(__file__).parents[1] / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    lines = [line for line in block.splitlines() if line.startswith(("c.", "c ="))]
    names = {"config": config, "images": np.zeros((300, 40, 40, 2), np.uint16)}
    exec("\n".join(lines), names)
    c = checks.resolve(config.read(names["c"]), 300)
    assert checks.check(c, records=300, devices=1) == []
