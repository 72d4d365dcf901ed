"""Every mechanism through the same run: loop, log, checkpoints, resume, evaluation; and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest

import moco_jax
from moco_jax import assembly, config, gallery, parallel, pretrain
from moco_jax.checkpoints import card, moco_state
from moco_jax.checkpoints.store import Store
from moco_jax.config import ConfigError, EndToEnd, MemoryBank, Moco
from moco_jax.data.sources import ArraySource
from moco_jax.mechanisms import MECHANISMS, VIEWS
from moco_jax.reports import runs
from tests import tiny

RUN = {  # two epochs of four steps
    "data": config.Data(mean=(0.5,) * 3, std=(0.25,) * 3),
    "views": config.Views(recipe="moco_v2", size=tiny.SIZE),
    "train": config.Train(epochs=2),
    "eval": config.Eval(every_epochs=0),
    "leak": config.Leak(every_epochs=1),
    "consistency": config.Consistency(every_epochs=1),
    "checkpoint": config.Checkpoint(every_epochs=1),
    "log": config.Log(every_steps=1),
}
CASES = {
    "end to end": tiny.end_to_end(**RUN),
    "end to end, two encoders": tiny.end_to_end(end_to_end=EndToEnd(0.2, symmetric=True, shared=False), **RUN),
    "bank": tiny.memory_bank(**RUN),
    "bank, nce": tiny.memory_bank(memory_bank=MemoryBank(20, 0.5, 0.2, "nce", dtype="bfloat16"), **RUN),
    "moco, nce": tiny.config(moco=Moco(0.0, 0.2, loss="nce"), **RUN),
}


def objects(c):
    """The arguments of a run: images of our own, an encoder that compiles in a second."""
    source = ArraySource(tiny.images(), name="mine")
    return {"source": source, "encoder": tiny.small_encoder(c, 3), "recipe": tiny.LIGHT}


def state_of(c, workdir, step):
    parts = assembly.assemble(c, **objects(c))
    with Store(workdir / "checkpoints", read_only=True) as store:
        return parallel.host(store.restore(step, parallel.abstract(parts.mechanism.init)))


def test_the_tables_agree():
    """A maker, its sections, its number of views and its title on a model card for each."""
    assert MECHANISMS.keys() == config.SECTIONS.keys() == VIEWS.keys() == card.TITLES.keys()


@pytest.mark.parametrize(
    "case",
    [
        "end to end",
        "bank",
        pytest.param("bank, nce", marks=pytest.mark.slow),
        *(pytest.param(c, marks=pytest.mark.long) for c in ("end to end, two encoders", "moco, nce")),
    ],
)
def test_a_run_is_logged_kept_resumed_and_opened(case, tmp_path):
    """Stopped after the first epoch and resumed, it ends in the same bits; its encoder opens."""
    c = CASES[case]

    def stops(state):
        raise KeyboardInterrupt

    pretrain.train(c, tmp_path / "whole", **objects(c))
    stopping = dataclasses.replace(c, eval=config.Eval(every_epochs=1))
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(stopping, tmp_path / "twice", **objects(c), evaluators=[stops])
    assert pretrain.train(c, tmp_path / "twice", **objects(c)).checkpoint == 8
    whole, twice = (state_of(c, tmp_path / name, 8) for name in ("whole", "twice"))
    gap, where = tiny.distance(twice, whole)
    assert gap == 0.0, where

    run = runs.read(tmp_path / "whole")
    assert run.chance == pytest.approx(assembly.assemble(c, **objects(c)).mechanism.chance)
    wanted = {"loss", "pretext_accuracy", "positive_similarity", "negative_similarity", "alignment", "uniformity"}
    wanted |= {"effective_rank"} | ({"log_z"} if "nce" in case else set())
    wanted |= {"bank_age_mean", "bank_age_max", "bank_filled"} if "bank" in case else {"leak"}
    assert wanted <= run.series.keys() and all(np.isfinite(list(run.series[name].values())).all() for name in wanted)
    assert len(run.series["loss"]) == 8
    stored = "end" not in case
    assert ("key_cosine_100" in run.series) == stored
    if stored:
        assert 0 < run.series["key_cosine_100"][8] < run.series["key_cosine_0"][8] <= 1
    parts = assembly.assemble(c, **objects(c))
    picture = gallery.views(parts, 8, gallery.Options(), "")
    assert ("key" in picture.alt) and ("two augmented" in picture.alt) == ("bank" not in case)
    encoder = moco_jax.load_encoder(tmp_path / "whole", encoder=tiny.small_encoder(c, 3))
    assert np.isfinite(encoder(tiny.images()[:3])).all()


def test_every_image_of_an_epoch_is_in_the_bank(tmp_path):
    """64 images in four steps of 16: every row is written in the second epoch, each by its own step."""
    c = CASES["bank"]
    pretrain.train(c, tmp_path, **objects(c))
    written = state_of(c, tmp_path, 8).memory.written
    assert sorted(np.unique(written, return_counts=True)[1]) == [16] * 4 and written.min() == 4
    log = runs.read(tmp_path).series
    assert [log[f"key_age_{p}"][8] for p in (0, 25, 50, 75, 100)] == [1, 2, 3, 3, 4]
    assert log["bank_filled"][8] == 1 and 4 < log["bank_age_max"][8] <= 7  # of the bank that the step found


def test_a_bank_takes_one_view_of_two(tmp_path):
    """Streamed: the host cuts view 0 alone, and the ids of the pair rule come whole."""
    c = dataclasses.replace(CASES["bank"], data=dataclasses.replace(RUN["data"], path="streamed"))
    parts = assembly.assemble(c, **objects(c))
    (batch,) = assembly.batches_of(parts)(first_step=0, last_step=1)
    assert len(batch["raw"]) == 1 and batch["ids"].shape == (16, 2)
    both = assembly.assemble(dataclasses.replace(CASES["end to end"], data=c.data), **objects(c))
    (pair,) = assembly.batches_of(both)(first_step=0, last_step=1)
    np.testing.assert_array_equal(batch["raw"][0], pair["raw"][0])
    assert len(pair["raw"]) == 2
    own = objects(c) | {"recipe": tiny.LIGHT[:1]}  # one is enough; what is not looked at is no part of the run
    assert assembly.assemble(c, **own).objects == parts.objects
    with pytest.raises(ConfigError, match="a recipe is two ViewRecipe"):
        assembly.assemble(CASES["end to end"], **own)
    assert pretrain.train(c, tmp_path, **objects(c)).checkpoint == 8


def test_a_bank_that_does_not_fit_is_refused_with_its_numbers(tmp_path, monkeypatch):
    """Bank and drawn features, before anything is compiled or written."""
    c = CASES["bank"]
    bank, drawn = 64 * 8 * 4, 16 // 8 * 12 * 8 * 4  # on eight devices
    monkeypatch.setattr(parallel, "memory_limit", lambda: bank + drawn)
    assembly.assemble(c, **objects(c))
    monkeypatch.setattr(parallel, "memory_limit", lambda: bank + drawn - 1)
    with pytest.raises(
        ConfigError, match=r"bank of 64 x 8 float32 takes .* 12 features .* memory_bank.dtype='bfloat16'"
    ):
        pretrain.train(c, tmp_path / "run", **objects(c))
    assert not (tmp_path / "run").exists()
    assembly.assemble(
        dataclasses.replace(c, memory_bank=dataclasses.replace(c.memory_bank, dtype="bfloat16")), **objects(c)
    )


def test_an_object_of_unknown_size_is_no_source():
    """A bank needs a row for every image, and an epoch its number of steps."""

    class Endless:
        name, classes = "endless", None

        def __getitem__(self, index):
            return tiny.images()[0]

        def labels(self):
            return None

    with pytest.raises(ConfigError, match="it needs __len__"):
        assembly.assemble(CASES["bank"], **{**objects(CASES["bank"]), "source": Endless()})


@pytest.mark.parametrize(
    ("case", "message"), [("bank", "mechanism 'memory_bank'"), ("end to end", "'end_to_end'"), ("moco, nce", "'nce'")]
)
def test_the_released_codes_checkpoint_holds_no_other_state(case, message):
    """It holds a queue and a target, and its code knows InfoNCE alone."""
    with pytest.raises(ConfigError, match=message):
        moco_state.check(CASES[case])


def test_a_page_of_each_mechanism_holds_its_sections_alone():
    """Sections of another do not exist, so they cannot be written by mistake."""
    for name, sections in config.SECTIONS.items():
        page = config.page(name)
        assert page.mechanism == name and set(sections) <= set(page)
        assert not {s for names in config.SECTIONS.values() for s in names} - set(sections) & set(page) - set(sections)
        assert config.read(json.loads(json.dumps(config.to_json(config.read(page))))) == config.read(page)
