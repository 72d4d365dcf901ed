"""Training goes on from what was converted: to the bit from our own file, from its epoch from another program's."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from moco_jax import pretrain
from moco_jax.checkpoints import agreement, pytorch
from moco_jax.checkpoints.store import Store
from moco_jax.config import ConfigError, Data, Eval, Leak, Queue, Train, Views
from moco_jax.conversion import convert
from tests import tiny

CONFIG = dataclasses.replace(
    tiny.config(seed=3),
    data=Data(dataset=None, array="images.npy", mean=(0.5,) * 3, std=(0.25,) * 3),
    views=Views(recipe="moco_v2", size=tiny.SIZE),
    eval=Eval(every_epochs=0),
    leak=Leak(every_epochs=0),
    train=Train(epochs=2),
    queue=Queue(48),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with images to train on, in which networks are not compared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(agreement, "of", lambda *_: "agreed")
    np.save("images.npy", tiny.images())
    return tmp_path


def state(run, step):
    with Store(run / "checkpoints", read_only=True) as store:
        return store.tree(step)


@pytest.mark.slow
def test_training_continues_from_a_converted_run_as_from_the_run(folder):
    """Stopped after four of eight steps, through a .pth.tar and back, and on: bit for bit the undisturbed end."""
    pytest.importorskip("torch")
    saved = dataclasses.replace(CONFIG, checkpoint=dataclasses.replace(CONFIG.checkpoint, every_epochs=1, keep=2))
    pretrain.train(saved, folder / "whole")
    with Store(folder / "whole/checkpoints", read_only=True) as store:
        about = store.about(4)
    half = folder / "half"
    with Store(half / "checkpoints") as store:
        store.save(4, jax.tree.map(np.asarray, state(folder / "whole", 4)), about)
    (half / "config.json").write_text(json.dumps(about))
    convert.convert(half, folder / "half.pth.tar", "pth.tar", say=lambda _: None)
    convert.convert(folder / "half.pth.tar", folder / "back", "orbax", say=lambda _: None)
    assert pretrain.train(saved, folder / "back").checkpoint == 8
    ends = [state(folder / name, 8) for name in ("whole", "back")]
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def theirs(folder):
    """A checkpoint of one epoch without our key, as another program's is."""
    torch = pytest.importorskip("torch")
    pretrain.train(dataclasses.replace(CONFIG, train=Train(epochs=1)), folder / "run")
    convert.convert(folder / "run", folder / "ours.pth.tar", "pth.tar", say=lambda _: None)
    content = torch.load(folder / "ours.pth.tar", weights_only=True)
    del content["moco_jax"]
    torch.save(content, folder / "theirs.pth.tar")
    return folder / "theirs.pth.tar"


@pytest.mark.slow
def test_training_continues_from_another_programs_checkpoint(theirs, folder):
    """At its epoch, in the run of a config: target, momentum and queue are the file's, of which no row's step is known.

    What does not fit is named with the flags that do; without a config, with too few epochs, or where all is done, it
    is said.
    """
    said = []
    with pytest.raises(ConfigError, match="neither its images nor its settings: .* --config=cifar10_demo"):
        convert.convert(theirs, folder / "on", "orbax", say=said.append)
    other = dataclasses.replace(CONFIG, queue=Queue(64), model=dataclasses.replace(CONFIG.model, head="linear"))
    with pytest.raises(ConfigError, match="it fits with --config.model.head=mlp --config.queue.size=48$"):
        convert.convert(theirs, folder / "on", "orbax", config=other, say=said.append)
    open_size = dataclasses.replace(other, queue=Queue())
    with pytest.raises(
        ConfigError, match="it fits with --config.model.head=mlp --config.queue.size=48$"
    ):  # all at once
        convert.convert(theirs, folder / "on", "orbax", config=open_size, say=said.append)
    with pytest.raises(ConfigError, match="it fits with --config.queue.size=48$"):  # of a quarter of the images: 16
        convert.convert(
            theirs, folder / "on", "orbax", config=dataclasses.replace(CONFIG, queue=Queue()), say=said.append
        )
    judged = dataclasses.replace(CONFIG, eval=Eval(every_epochs=1))
    with pytest.raises(ConfigError, match="has no labels for kNN; name labelled data as eval.data"):  # as train would
        convert.convert(theirs, folder / "on", "orbax", config=judged, say=said.append)
    assert not (folder / "on").exists()
    convert.convert(theirs, folder / "on", "orbax", config=CONFIG, say=said.append)
    assert not any("learning rate" in line for line in said)
    faster = dataclasses.replace(CONFIG.optimizer, learning_rate=2 * CONFIG.optimizer.learning_rate)
    rated = dataclasses.replace(CONFIG, optimizer=faster)
    convert.convert(theirs, folder / "rated", "orbax", config=rated, say=said.append)
    assert any("warning: its last learning rate was" in line for line in said)
    assert any("the config's moco.momentum=0.9 and moco.temperature=0.2" in line for line in said)
    before, after = state(folder / "run", 4), state(folder / "on", 4)
    assert (after["memory"].pop("written") == -1).all() and before["memory"].pop("written").max() == 3
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    assert pretrain.train(CONFIG, folder / "on").checkpoint == 8
    assert int(state(folder / "on", 8)["step"]) == 8
    with Store(folder / "on/checkpoints", read_only=True) as store:  # it still says where it comes from
        assert store.about(8)["origin"]["text"].startswith("MoCo checkpoint, ")
    done = dataclasses.replace(CONFIG, train=Train(epochs=1))
    convert.convert(theirs, folder / "done", "orbax", config=done, say=said.append)
    assert any("all 4 steps of this config are done" in line for line in said)


def test_an_epoch_beyond_the_config_and_another_optimizer_are_refused(theirs, folder):
    """With the flag that helps; nothing is left behind."""
    content = pytorch.read(theirs)
    pytorch.write(folder / "late.pth.tar", content | {"epoch": 3})
    with pytest.raises(ConfigError, match="has done 3 epochs, and the config trains 2: raise --config.train.epochs"):
        convert.convert(folder / "late.pth.tar", folder / "on", "orbax", config=CONFIG, say=lambda _: None)
    content["optimizer"]["param_groups"][0] |= {"weight_decay": 0.5}
    pytorch.write(folder / "decay.pth.tar", content)
    with pytest.raises(ConfigError, match="it fits with --config.optimizer.weight_decay=0.5"):
        convert.convert(folder / "decay.pth.tar", folder / "on", "orbax", config=CONFIG, say=lambda _: None)
    content["optimizer"]["param_groups"][0] |= {"weight_decay": 1e-4, "nesterov": True}
    pytorch.write(folder / "nesterov.pth.tar", content)
    with pytest.raises(ConfigError, match="its SGD has nesterov=True"):
        convert.convert(folder / "nesterov.pth.tar", folder / "on", "orbax", config=CONFIG, say=lambda _: None)
    content["optimizer"]["param_groups"][0] |= {"nesterov": False, "dampening": 0.5}
    pytorch.write(folder / "dampening.pth.tar", content)
    with pytest.raises(ConfigError, match="its SGD has dampening=0.5"):
        convert.convert(folder / "dampening.pth.tar", folder / "on", "orbax", config=CONFIG, say=lambda _: None)
    again = dataclasses.replace(CONFIG, train=Train(epochs=2, init_from=str(theirs)))
    with pytest.raises(ConfigError, match="--config.train.init_from starts a run anew, and this one goes on"):
        convert.convert(theirs, folder / "on", "orbax", config=again, say=lambda _: None)
    assert not (folder / "on").exists()
