"""The whole way on a folder of files: train on class folders, kNN on val, move, resume, probe; and what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from moco_jax import assembly, config, pretrain, protocols, run_folder
from moco_jax.config import ConfigError
from moco_jax.data import shrink
from moco_jax.evaluation import probe
from tests import tiny

RNG = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path):
    """train and val, each with dark and light pictures; two sizes, one image smaller than a view."""
    for split, count in (("train", 10), ("val", 3)):
        for name, low in (("dark", 0), ("light", 150)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = RNG.integers(low, low + 100, (10 + i % 2, 12, 3), np.uint8)
                Image.fromarray(pixels[: 6 if (split, name, i) == ("train", "dark", 3) else None]).save(
                    folder / f"{i}.png"
                )
    return tmp_path / "photos"


def page(folder, **changes):
    """A net of width 4 on views of 8 pixels, one epoch of one step."""
    data = config.Data(dataset=None, folder=str(folder), mean=(0.5,) * 3, std=(0.5,) * 3, path="streamed")
    c = config.Config(
        batch_size=16,
        bn=config.BatchNorm(2),
        data=data,
        views=config.Views(recipe="digits", size=8),
        model=config.Model(width=4, dim=8),
        queue=config.Queue(16),
        train=config.Train(epochs=1),
        eval=config.Eval(every_epochs=1, split="val", k=3, batch_size=8),
        leak=config.Leak(every_epochs=0),
        consistency=config.Consistency(every_epochs=0),
    )
    return dataclasses.replace(c, **changes)


def test_a_copy_of_another_size_is_other_images(photos, tmp_path):
    """Its names are the same, so that a run would go on with them; moved, and copied anew, it is the same again."""
    shorter = {}
    for name, side in (("small", 8), ("again", 8), ("smaller", 6)):
        with shrink.begun(str(photos), str(tmp_path / name), short_side=side, quality=95) as (listing, folder):
            list(shrink.copy(listing, folder, short_side=side, quality=95, workers=1))
        (tmp_path / name).rename(tmp_path / f"{name}_moved")
        shorter[name] = assembly.assemble(page(tmp_path / f"{name}_moved/train")).records["fingerprint"]
    here = assembly.assemble(page(photos / "train")).records["fingerprint"]
    assert shorter["small"] == shorter["again"] and len({here, *shorter.values()}) == 3


@pytest.mark.slow
def test_a_folder_trains_is_monitored_moves_and_is_probed(photos, tmp_path):
    """kNN on val is in the log, small images are warned of, and the run knows its images wherever they lie."""
    run = tmp_path / "run"
    assert pretrain.train(page(photos), run, recipe=tiny.LIGHT).checkpoint == 1
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [0 <= r["knn_top1"] <= 1 for r in records if "knn_top1" in r] == [True]
    assert any("1 of the 20 images looked at are smaller than views.size 8" in w for w in records[0]["warnings"])

    moved = shutil.move(photos, tmp_path / "moved")
    assert pretrain.train(page(moved), run, recipe=tiny.LIGHT).was_complete
    shutil.copy(moved / "train/dark/0.png", moved / "train/dark/99.png")
    with pytest.raises(ConfigError, match=r"holds a run on 20 images, and there are 21 now \(1 more; "):
        pretrain.train(page(moved), run, recipe=tiny.LIGHT)
    (moved / "train/dark/0.png").unlink()
    with pytest.raises(ConfigError, match=r"holds a run on 20 images, and there are 20 now \(as many, but others; "):
        pretrain.train(page(moved), run, recipe=tiny.LIGHT)

    data = protocols.Labelled(dataset=str(moved), test_split="val")
    settings = protocols.Linear(epochs=2, milestones=(1,), batch_size=16, data=data)
    assert "trained encoder: top-1" in probe.run(settings, run, tmp_path / "linear")


@pytest.mark.parametrize(
    ("data", "evaluation", "message"),
    [
        ({"folder": "flat"}, {}, r"flat \(train\) has no labels for kNN; name labelled data as eval.data"),
        ({}, {"split": "test"}, r"split 'test' of .*photos.*train \(20 images\), val \(6 images\)"),
        ({}, {"data": "absent/x"}, "'absent/x' is not there"),
        ({"folder": "absent"}, {}, "absent' is not there"),
        ({"path": "resident"}, {}, "differ in size, so they cannot be resident"),
        ({"dataset": "digits"}, {}, "set --config.data.dataset=None"),
        ({"range": (300.0, 400.0)}, {}, r"data.range \(300.0, 400.0\) leaves everything outside but"),
    ],
)
def test_what_cannot_be_run_ends_before_anything_is_written(photos, tmp_path, monkeypatch, data, evaluation, message):
    """One clear line, and no folder."""
    monkeypatch.chdir(tmp_path)
    for file in (photos / "train").glob("*/*"):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "flat" / f"{file.parent.name}{file.name}")
    c = page("photos")
    c = dataclasses.replace(c, data=dataclasses.replace(c.data, **data), eval=dataclasses.replace(c.eval, **evaluation))
    with pytest.raises(ConfigError, match=message):
        pretrain.train(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_array_knows_its_images_by_their_shape(tmp_path):
    """The path is free; another number of images or dtype is not."""
    found = {}
    for name, images in (
        ("a", np.zeros((20, 8, 8), np.uint8)),
        ("b", np.ones((20, 8, 8), np.uint8)),
        ("c", np.zeros((21, 8, 8), np.uint8)),
    ):
        np.save(tmp_path / f"{name}.npy", images)
        data = config.Data(dataset=None, array=str(tmp_path / f"{name}.npy"))
        parts = assembly.assemble(page("", data=data, eval=config.Eval(every_epochs=0)))
        found[name] = parts.records["fingerprint"]
    assert found["a"] == found["b"] != found["c"]


def test_a_run_may_not_lie_among_the_images_that_it_reads(photos, tmp_path):
    """Its pictures would be taken for images: neither in a folder that it reads nor below it; beside it is fine."""
    others = shutil.copytree(photos, tmp_path / "others")
    c = page(photos, eval=config.Eval(every_epochs=1, data=str(others), split="val", k=3, batch_size=8))
    before = sorted(tmp_path.rglob("*"))
    for key, folder in (("data.folder", photos), ("eval.data", others)):
        for workdir in (folder, folder / "runs/a"):
            said = rf"^--workdir={workdir} lies in {key} {folder}: .*; give a --workdir outside of it$"
            with pytest.raises(ConfigError, match=said):
                pretrain.train(c, workdir)
    assert sorted(tmp_path.rglob("*")) == before
    assert run_folder.check(assembly.assemble(c), tmp_path / "othersrun") == 0


def test_a_file_that_cannot_be_read_says_how_to_go_on_without_it(photos, tmp_path):
    """One of 20 is more than 1 %: the file by its name, and the command that finds all such files."""
    (photos / "train/dark/0.png").write_bytes(b"")
    with pytest.raises(
        ConfigError,
        match=r"^1 of the 20 images of .*photos \(train\) cannot be read, more than data.max_bad_fraction 0.01 allows: "
        r"train/dark/0.png \(is empty\); .* moco-jax inspect PATH --write=PAGE.py finds",
    ):
        pretrain.train(page(photos), tmp_path / "run")
    assert not (tmp_path / "run").exists()
