"""The page that `inspect` writes: complete, as the data need it, and passing the checks of a run."""

import dataclasses

import pytest

from moco_jax import checks, config, pages, suggest
from moco_jax.config import ConfigError
from moco_jax.core import schedules
from moco_jax.data.survey import Kind, Summary

PHOTOS = suggest.Images(
    place={"folder": "/photos"},
    records=5000,
    summary=Summary(Kind(3, "uint8"), 0.0, 255.0, (127.5, 51.0, 25.5), (51.0, 25.5, 12.75)),
    channels=None,
    shape=None,
    shorter=375,
    classes=0,
    splits={"train": 5000},
    labelled=frozenset(),
    grouped=False,
    workers=4,
)


def suggested(**changes):
    page, _ = suggest.suggest(dataclasses.replace(PHOTOS, **changes))
    return config.read(page)


@pytest.mark.parametrize(
    ("shorter", "resize"), [(16, 18), (24, 28), (48, 54), (56, 64), (64, 73), (80, 92), (136, 156), (224, 256)]
)
def test_a_suggested_view_is_cut_alike_by_transformers(shorter, resize):
    """Not three more than a multiple of four below the resized side, where their processor rounds otherwise."""
    labelled = {"splits": {"train": 5000, "val": 9}, "labelled": frozenset(("train", "val")), "classes": 2}
    c = suggested(shorter=shorter, **labelled)
    assert (c.views.size, c.eval.resize) == (shorter, resize)


@pytest.mark.parametrize("records", [16, 17, 24, 60, 63, 100, 768, 1000, 5000, 10**6])
def test_a_suggested_run_passes_the_checks_of_any_number_of_images(records):
    """Batch, groups, shuffle block and queue fit each other, without a warning that the page could have avoided."""
    c = checks.resolve(suggested(records=records), records)
    warnings = checks.check(c, records=records, devices=1)
    assert c.shuffle.block > 0 and warnings == []
    assert records // c.batch_size >= 2


@pytest.mark.parametrize(("records", "batch", "scaled"), [(60, 16, "0.0019"), (300, 64, "0.0075"), (5000, 256, "")])
def test_a_small_batch_is_trained_at_the_published_rate(records, batch, scaled):
    """As the shipped pages do: 0.03 at the first step, whatever the batch; the page says what scaling would make."""
    page, why = suggest.suggest(dataclasses.replace(PHOTOS, records=records))
    c = config.read(page)
    rate = schedules.learning_rate(c.optimizer, batch_size=c.batch_size, epochs=c.train.epochs, steps_per_epoch=3)
    assert c.batch_size == batch and float(rate(0)) == pytest.approx(0.03)
    said = f"times {batch} / 256 the rate would be {scaled}," if scaled else ""
    assert why["optimizer.linear_scaling"].startswith(said) and bool(why["optimizer.linear_scaling"]) == bool(scaled)


def test_too_few_images_are_refused():
    """Below two batches of two groups there is nothing to contrast."""
    with pytest.raises(ConfigError, match="15 images are too few"):
        suggested(records=15)
    with pytest.raises(ConfigError, match="every value of the 5000 images is 500"):
        suggested(summary=Summary(Kind(1, "uint16"), 500.0, 500.0, (500.0,), (0.0,)))


def test_values_follow_the_images():
    """Mean and std after the mapping to 0..1; a measured range for anything but 8 bits; recipe by channels."""
    c = suggested()
    assert c.data.mean == (0.5, 0.2, 0.1) and c.data.std == (0.2, 0.1, 0.05) and c.data.range is None
    assert (c.data.dataset, c.data.folder, c.data.path, c.views.recipe, c.views.size) == (
        None,
        "/photos",
        "streamed",
        "moco_v2",
        224,
    )
    scan = Summary(Kind(1, "uint16"), 100.0, 4100.0, (1100.0,), (400.0,))
    c = suggested(summary=scan, shape=(60, 60), shorter=60)
    assert c.data.range == (100.0, 4100.0) and c.data.mean == (0.25,) and c.data.std == (0.1,)
    assert (c.data.path, c.views.size, c.model.stem) == ("resident", 56, "cifar")
    assert suggested(records=12_000).moco.momentum == 0.99  # 9,200 steps
    assert suggested(records=20_000).moco.momentum == 0.999  # 15,600
    bands = Summary(Kind(13, "uint16"), 0.0, 10000.0, (1.0,) * 13, (1.0,) * 13)
    assert suggested(summary=bands).views.recipe == "bands"
    assert suggested(summary=bands, shape=(10_000, 10_000)).data.path == "streamed"  # 13 TB


SLICES = ("train[:80%]", "train[80%:]")


def test_monitoring_needs_labels_of_two_classes():
    """kNN wherever the training images have labels; otherwise, and for one class, it is off, so that the page runs."""
    assert suggested().eval.every_epochs == 0
    both = {"train": 5000, "val": 100}
    for labelled in (set(), {"val"}):
        c = suggested(labelled=labelled, classes=10, splits=both)
        assert (c.eval.every_epochs, c.eval.split) == (0, "val")  # for the neighbours in a report
    c = suggested(labelled={"train", "val"}, classes=10, splits=both)
    assert (c.eval.every_epochs > 0, c.eval.bank_split, c.eval.split) == (True, "train", "val")
    assert (c.eval.k, c.eval.resize) == (200, 256)
    page, why = suggest.suggest(dataclasses.replace(PHOTOS, labelled=frozenset({"train"}), classes=1))
    assert page.eval.every_epochs == 0 and why["eval.every_epochs"] == "one class alone"
    for classes, watched in ((2501, False), (2500, True)):  # of 5,000 images: no fifth of them tells of the others
        images = dataclasses.replace(PHOTOS, labelled=frozenset({"train"}), classes=classes)
        assert (suggest.suggest(images)[0].eval.every_epochs > 0) == watched


@pytest.mark.parametrize("splits", [{"train": 5000}, {"train": 5000, "val": 100}])
def test_without_another_labelled_split_a_part_of_train_is_asked(splits):
    """Its slices, and no more neighbours than images of a class among those that have labels."""
    images = dataclasses.replace(PHOTOS, labelled=frozenset({"train"}), classes=40, splits=splits)
    page, why = suggest.suggest(images)
    assert page.eval.every_epochs > 0 and (page.eval.bank_split, page.eval.split) == SLICES
    assert page.eval.k == 100 and page.eval.resize == 256
    assert why["eval.bank_split"].startswith("no labels in val:" if "val" in splits else "no split val or test:")
    assert suggested(labelled={"train"}, classes=2, splits={"train": 16}, records=16).eval.k == 6  # of 12 or 13


def test_the_split_to_judge_on_is_the_first_one_with_labels():
    """test, where val has no labels; and where kNN stays off, the splits that lack labels are named, and no others."""
    splits = {"train": 5000, "val": 100, "test": 50}
    images = dataclasses.replace(PHOTOS, classes=10, splits=splits)
    page, why = suggest.suggest(dataclasses.replace(images, labelled=frozenset({"train", "test"})))
    assert page.eval.split == "test" and page.eval.every_epochs > 0 and why["eval.split"].startswith("50 labelled")
    for labelled, named in (
        ({"val"}, "train and test"),
        ({"val", "test"}, "train"),
        (set(), "train and val and test"),
    ):
        page, why = suggest.suggest(dataclasses.replace(images, labelled=frozenset(labelled)))
        assert (page.eval.every_epochs, page.eval.split) == (0, "val")
        assert why["eval.every_epochs"] == f"no labels in {named}"
    assert suggest.suggest(PHOTOS)[1]["eval.every_epochs"] == "no labels in train"


def test_the_text_is_the_page(tmp_path):
    """Every key of the schema is written, with its meaning, and the file loads back to the very same config."""
    page, why = suggest.suggest(PHOTOS)
    text = suggest.text(page, why, "Photos.")
    (tmp_path / "mine.py").write_text(text)
    assert pages.load(str(tmp_path / "mine.py")).to_dict() == page.to_dict()
    for key, _, meaning in pages.explained(page):
        assert key == "mechanism" or (f"config.{key} = " in text and meaning in text), key
    assert max(map(len, text.splitlines())) <= 160


def test_a_plan_is_what_the_run_resolves():
    """Steps, epochs, queue and memory, by numbers."""
    images = dataclasses.replace(PHOTOS, shape=(32, 32), records=1000)
    page, _ = suggest.suggest(images)
    lines = "\n".join(suggest.plan(images, page))
    said = "1000 images in batches of 256: 3 steps per epoch (of 768 images, others in each), 200 epochs = 600 steps"
    assert said in lines
    assert "queue.size 256" in lines
    assert f"{1000 * 32 * 32 * 3 / 2**20:,.1f} MiB" in lines
