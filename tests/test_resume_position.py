"""Where a run goes on: batches, state and loop begin at the newest checkpoint; the loop itself is not run here."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import parallel, pretrain
from moco_jax.checkpoints.store import exclusive
from moco_jax.config import ConfigError, Data, Eval, Views
from moco_jax.data import order
from moco_jax.data.sources import ArraySource
from tests import tiny

CONFIG = dataclasses.replace(
    tiny.config(seed=11),
    data=Data(mean=(0.5,) * 3, std=(0.25,) * 3),
    views=Views(recipe="moco_v2", size=tiny.SIZE),
    eval=Eval(every_epochs=0),
)
TOTAL = 20  # 64 images in batches of 16, five epochs
SMALL = tiny.small_encoder(CONFIG, 3)


def ids(step):
    """Records of a step, in the order of the whole batch."""
    return order.ids(11, step, np.arange(16), records=tiny.RECORDS, batch_size=16)


@pytest.fixture
def calls(monkeypatch):
    """What the loop was handed in each call; the fake one saves twice, then stops. "saves" says at which steps."""
    heard = {"saves": (), "loops": [], "error": None}

    def loop(step_fn, state, batches, data, *, first_step, cadence, save, **_):
        heard["loops"].append((first_step, int(parallel.host(state.step)), cadence.total, batches))
        for step in heard["saves"]:
            save(step, state.replace(step=parallel.born(lambda n=step: jnp.asarray(n, jnp.int32))), {})
        if heard["error"] is not None:
            raise heard["error"]

    monkeypatch.setattr(pretrain, "run", loop)
    return heard


def go(workdir):
    return pretrain.train(CONFIG, workdir, encoder=SMALL, source=ArraySource(tiny.images(), name="mine"))


def test_batches_state_and_loop_begin_at_the_newest_checkpoint(calls, tmp_path):
    """A new folder: step 0. Stopped after saving steps 4 and 9: all three at 9, and the batches up to the end."""
    calls["saves"] = (4, 9)
    go(tmp_path)
    calls["saves"] = (TOTAL,)
    go(tmp_path)
    assert [call[:3] for call in calls["loops"]] == [(0, 0, TOTAL), (9, 9, TOTAL)]
    for first, _, total, batches in calls["loops"]:
        found = [batch["ids"] for batch in batches]
        assert len(found) == total - first
        np.testing.assert_array_equal(found, [ids(step) for step in range(first, total)])
    assert not np.array_equal(ids(0), ids(9))


def test_a_complete_run_enters_no_loop(calls, tmp_path):
    """The last step is there: nothing is trained, whoever asks."""
    calls["saves"] = (TOTAL,)
    go(tmp_path)
    go(tmp_path)
    assert len(calls["loops"]) == 1


def test_an_error_of_the_users_leaves_a_folder_only_where_it_holds_a_checkpoint(calls, tmp_path):
    """Before the first one a new folder goes again, an empty one is empty again; what was saved, what was there, and a
    crash's traces all stay."""
    calls["error"] = ConfigError("record 70 has 1 channel")
    with pytest.raises(ConfigError, match="record 70"):
        go(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="record 70"):
        go(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []  # else the run that the error asks for would be another one
    (tmp_path / "there").mkdir()
    (tmp_path / "there/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="record 70"):
        go(tmp_path / "there")
    assert (tmp_path / "there/config.json").is_file() and (tmp_path / "there/notes.txt").read_text() == "mine"
    calls["saves"] = (4,)
    with pytest.raises(ConfigError, match="record 70"):
        go(tmp_path / "saved")
    assert (tmp_path / "saved/checkpoints/4").is_dir()
    calls["saves"], calls["error"] = (), RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        go(tmp_path / "crashed")
    assert (tmp_path / "crashed/log.jsonl").is_file()


def test_a_folder_in_which_a_run_is_at_work_is_refused(calls, tmp_path):
    """It is held as long as the run goes, and no longer."""
    with exclusive(tmp_path), pytest.raises(ConfigError, match="another process is at work in"):
        go(tmp_path)
    assert calls["loops"] == []
    go(tmp_path)
    assert len(calls["loops"]) == 1


def test_a_folder_of_other_images_is_refused(calls, tmp_path):
    """As many, of other names; the loop is not entered."""

    class Named(ArraySource):
        def __init__(self, first):
            super().__init__(tiny.images(), name="mine")
            self.first = first

        def names(self):
            return [f"{self.first + i}.png" for i in range(len(self))]

    calls["saves"] = (4,)
    pretrain.train(CONFIG, tmp_path, encoder=SMALL, source=Named(0))
    with pytest.raises(ConfigError, match="as many, but others"):
        pretrain.train(CONFIG, tmp_path, encoder=SMALL, source=Named(1))
    assert len(calls["loops"]) == 1


def test_a_folder_that_became_another_runs_meanwhile_is_refused(calls, tmp_path, monkeypatch):
    """Between the first look and the lock images are read, perhaps for minutes."""
    calls["saves"] = (4,)

    def other(name):
        if name == "checked" and not (tmp_path / "config.json").exists():
            monkeypatch.undo()
            monkeypatch.setattr(pretrain, "run", loop)
            pretrain.train(
                dataclasses.replace(CONFIG, seed=12), tmp_path, encoder=SMALL, source=ArraySource(tiny.images())
            )

    loop = pretrain.run
    monkeypatch.setattr(parallel, "barrier", other)
    with pytest.raises(ConfigError, match="holds another run: seed 12 -> 11"):
        go(tmp_path)
    assert len(calls["loops"]) == 1


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/4"])
def test_a_folder_among_the_checkpoints_of_a_run_is_no_workdir(calls, tmp_path, place):
    """It would train there, and be listed as one."""
    calls["saves"] = (4,)
    go(tmp_path)
    with pytest.raises(ConfigError, match="lies among the checkpoints of a run"):
        go(tmp_path / place)
