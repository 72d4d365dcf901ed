"""Runs whose device cuts the crops (`data.canvas`): every mechanism takes them, and a run goes on and is shown."""

import dataclasses

import jax
import numpy as np
import pytest

from moco_jax import assembly, config, gallery, parallel, pretrain
from moco_jax.checkpoints.store import Store
from moco_jax.data.sources import ArraySource
from tests import tiny

RUN = {  # two epochs of four steps
    "data": config.Data(mean=(0.5,) * 3, std=(0.25,) * 3, path="streamed", canvas=2 * tiny.SIZE),
    "views": config.Views(recipe="moco_v2", size=tiny.SIZE),
    "train": config.Train(epochs=2),
    "eval": config.Eval(every_epochs=0),
    "leak": config.Leak(every_epochs=0),
    "consistency": config.Consistency(every_epochs=0),
    "checkpoint": config.Checkpoint(every_epochs=1),
    "log": config.Log(every_steps=1),
}
PAIRS = dataclasses.replace(RUN["data"], pairs="same_group")
CASES = {
    "moco": tiny.config(**RUN),
    "two images of a group": tiny.config(**RUN | {"data": PAIRS}),
    "micro-batches": tiny.config(
        batch_size=32, bn=config.BatchNorm(2), **RUN | {"train": config.Train(epochs=2, microbatch_size=2)}
    ),
    "end to end": tiny.end_to_end(**RUN),
    "bank": tiny.memory_bank(**RUN),
}


def images():
    """64 smooth pictures of many sizes, some larger than the canvas."""
    rng, out = np.random.default_rng(0), []
    for i in range(tiny.RECORDS):
        height, width = 9 + i % 11, 24 - i % 13
        ramp = np.add.outer(np.arange(height) * 7, np.arange(width) * 5)[..., None] * rng.uniform(0.3, 1, 3)
        out.append((ramp % 256).astype(np.uint8))
    return out


def objects(c):
    """The arguments of a run; groups of two images."""
    source = ArraySource(images(), name="mine", groups=np.arange(tiny.RECORDS) // 2)
    return {"source": source, "encoder": tiny.small_encoder(c, 3), "recipe": tiny.LIGHT}


def with_host_crops(c):
    return dataclasses.replace(c, data=dataclasses.replace(c.data, canvas=0))


def state_of(c, workdir):
    """All that the last checkpoint holds."""
    parts = assembly.assemble(c, **objects(c))
    with Store(workdir / "checkpoints", read_only=True) as store:
        return parallel.host(store.restore(store.latest(), parallel.abstract(parts.mechanism.init)))


@pytest.mark.parametrize("case", CASES)
def test_every_mechanism_takes_canvases(case):
    """The whole step, traced: the state and the metrics of host crops, from canvases and boxes and no raw views."""
    shapes = []
    for c in (CASES[case], with_host_crops(CASES[case])):
        parts = assembly.assemble(c, **objects(c))
        (batch,) = assembly.batches_of(parts)(first_step=0, last_step=1)
        assert ("canvas" in batch) != ("raw" in batch) and ("canvas" in batch) == bool(c.data.canvas)
        placed = parallel.put_batch(jax.tree.map(lambda a: a[None], batch))
        shapes.append(jax.eval_shape(parts.mapped, parallel.abstract(parts.mechanism.init), placed, {}))
    assert shapes[0] == shapes[1]


@pytest.mark.long
def test_a_run_with_canvases_goes_on_and_is_the_run_of_the_host(tmp_path):
    """Stopped and resumed: the same bits. Beside host crops: what a level of 255 makes, a tenth of another seed."""
    c = CASES["moco"]

    def stops(state):
        raise KeyboardInterrupt

    pretrain.train(c, tmp_path / "whole", **objects(c))
    stopping = dataclasses.replace(c, eval=config.Eval(every_epochs=1))
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(stopping, tmp_path / "twice", **objects(c), evaluators=[stops])
    assert pretrain.train(c, tmp_path / "twice", **objects(c)).checkpoint == 8
    whole = state_of(c, tmp_path / "whole")
    gap, where = tiny.distance(state_of(c, tmp_path / "twice"), whole)
    assert gap == 0.0, where

    host = with_host_crops(c)
    pretrain.train(host, tmp_path / "host", **objects(c))
    near, _ = tiny.distance(whole.memory.queue, state_of(host, tmp_path / "host").memory.queue)
    other = dataclasses.replace(c, seed=1)
    pretrain.train(other, tmp_path / "other", **objects(c))
    far, _ = tiny.distance(whole.memory.queue, state_of(other, tmp_path / "other").memory.queue)
    assert 0 < near < far / 10


def test_views_of_canvases_are_shown():
    """The picture of a report, of the same crops: what is drawn of the colours is the same."""
    c = CASES["moco"]
    shown = []
    for each in (c, with_host_crops(c)):
        parts = assembly.assemble(each, **objects(c))
        (batch,) = assembly.batches_of(parts)(first_step=3, last_step=4, positions=np.arange(8))
        shown.append(gallery.samples.view_pairs(parts.views, each, parts.source, batch, 3))
    assert np.abs(shown[0] - shown[1]).max() < 0.03 and shown[0].std() > 0.1
