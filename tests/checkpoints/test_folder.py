"""What is half done is never a step: kills while writing and while removing, failures of both, and what is left."""

import errno
import shutil
import threading
import time

import numpy as np
import pytest

from moco_jax import parallel
from moco_jax.checkpoints import arrays, digests, folder, verified
from moco_jax.checkpoints import store as stores
from moco_jax.config import ConfigError
from tests.checkpoints.test_store import ABOUT, init

STATE = {"a": {"w": np.arange(6.0, dtype=np.float32)}, "step": np.asarray(3, np.int32)}


class Killed(BaseException):
    """In place of a signal: nothing catches it."""


def names(path):
    return sorted(p.name for p in path.iterdir())


def write(path, *steps, keep=2):
    """The outcome of writing these steps, by a writer that ends."""
    writer = folder.Writer(path, keep=keep)
    for step in steps:
        writer.start(step, STATE, {"format": 1})
        assert writer.finish() is None
    return writer.close()


def test_old_ones_go_when_the_new_one_is_there(tmp_path, monkeypatch):
    """A removal begins when the new step is listed, by a rename; the newest two stay, and no trace of the others."""
    listed = []
    empty = folder._empty
    monkeypatch.setattr(folder, "_empty", lambda path: (listed.append(folder.steps_of(tmp_path)), empty(path)))
    assert write(tmp_path, 1, 2, 3, 4) is None
    assert listed[1:] == [[1], [1, 2], [2, 3], [3, 4]]  # the first is of the start
    assert set(names(tmp_path)) - {folder.TRASH} == {"3", "4"} and not any((tmp_path / folder.TRASH).iterdir())


def test_a_kill_inside_a_removal_leaves_no_step_torn(tmp_path, monkeypatch):
    """Files of the old step are half gone, and it is no step any more; the next start removes the rest."""
    write(tmp_path, 1, 2)

    def killed(path):
        (path / "digests/metadata").unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    writer = folder.Writer(tmp_path, keep=2)
    writer.start(3, STATE, {"format": 1})
    with pytest.raises(Killed):
        writer._pending.result()
    monkeypatch.undo()
    assert folder.steps_of(tmp_path) == [2, 3] and any((tmp_path / folder.TRASH).iterdir())
    for step in (2, 3):
        verified.check(tmp_path / str(step))
    write(tmp_path)
    assert not any((tmp_path / folder.TRASH).iterdir())


def test_what_is_being_written_is_no_step_and_is_cleaned_away(tmp_path, monkeypatch):
    """Seen from inside the write of the description; a start after a kill there removes the folder."""
    seen = []
    dumps = digests.of_json

    def spied(content):
        seen.append(folder.steps_of(tmp_path))
        return dumps(content)

    monkeypatch.setattr(digests, "of_json", spied)
    write(tmp_path, 1)
    assert seen and all(steps == [] for steps in seen)
    half = tmp_path / f"2{arrays.TEMPORARY}"
    shutil.copytree(tmp_path / "1", half)
    assert folder.steps_of(tmp_path) == [1]
    write(tmp_path)
    assert not half.exists()


WRITE = arrays.write


def failing(monkeypatch, *steps):
    """From now on writes of these steps fail, half way."""

    def fails(path, *content):
        if int(path.name) in steps:
            (path.with_name(path.name + arrays.TEMPORARY) / "state").mkdir(parents=True)
            raise ValueError("RESOURCE_EXHAUSTED: Error writing\nmore")
        WRITE(path, *content)

    monkeypatch.setattr(arrays, "write", fails)


def test_a_failed_save_is_heard_of_and_the_next_one_tried(tmp_path, monkeypatch):
    """The caller goes on with a warning; what was there is whole, nothing half written stays, and later saves work."""
    failing(monkeypatch, 2, 3)
    heard = []
    state = parallel.born(init)
    with stores.Store(tmp_path, keep=2) as store:
        for step in (1, 2, 3, 4, 5):
            store.save(step, state, ABOUT, warn=heard.append)
            if step == 3:
                assert store.latest() == 1 and names(tmp_path) == ["1"]
    said = "could not be written (ValueError: RESOURCE_EXHAUSTED: Error writing); the newest one is step 1, and whole"
    assert heard == [f"checkpoint {tmp_path}/{step} {said}" for step in (2, 3)]
    assert folder.steps_of(tmp_path) == [4, 5]
    stores.Store(tmp_path, read_only=True).restore(5, parallel.abstract(init))


def test_what_a_failed_save_still_writes_is_removed(tmp_path, monkeypatch):
    """Orbax writes several files at once, and one that fails does not wait for the others."""
    late = []

    def fails(path, *_):
        def straggle():
            time.sleep(0.1)
            (path.with_name(f"{path.name}{arrays.TEMPORARY}") / "state").mkdir(parents=True)

        late.append(threading.Thread(target=straggle))
        late[-1].start()
        raise ValueError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(arrays, "write", fails)
    writer = folder.Writer(tmp_path, keep=2)
    writer.start(3, STATE, {"format": 1})
    assert "could not be written" in str(writer.finish())
    late[0].join()
    assert names(tmp_path) == []


def test_a_last_save_that_fails_is_an_error_at_the_end(tmp_path, monkeypatch):
    """Also where nobody asked; an error that ends the run first stays the one that is raised."""
    failing(monkeypatch, 2)
    state = parallel.born(init)

    def saved(error=None):
        with stores.Store(tmp_path) as store:
            store.save(2, state, ABOUT, warn=lambda text: None)
            if error is not None:
                raise error

    with pytest.raises(OSError, match=r"/2 could not be written .*; there is no other"):
        saved()
    with pytest.raises(KeyboardInterrupt):
        saved(KeyboardInterrupt())
    with stores.Store(tmp_path) as store:
        store.save(1, state, ABOUT)
    with pytest.raises(OSError, match="the newest one is step 1, and whole"):
        saved()


def test_without_a_listener_a_failed_save_is_an_error_at_the_next_call(tmp_path, monkeypatch):
    """A conversion must not go on."""
    failing(monkeypatch, 1)
    state = parallel.born(init)
    store = stores.Store(tmp_path)
    store.save(1, state, ABOUT)
    for call in (store.wait, lambda: store.save(2, state, ABOUT)):
        with pytest.raises(OSError, match="/1 could not be written"):
            call()


def test_old_ones_that_cannot_go_are_said_and_the_new_one_is_there(tmp_path, monkeypatch):
    """It is no loss of a checkpoint, and is not called one."""
    write(tmp_path, 1, 2)

    def fails(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", fails)
    writer = folder.Writer(tmp_path, keep=2)
    writer.start(3, STATE, {"format": 1})
    assert writer.finish() is None and folder.steps_of(tmp_path) == [2, 3]
    assert "/3 is written, but older ones stay (" in writer.stays() and writer.stays() is None
    state, heard = parallel.born(init), []
    with stores.Store(tmp_path, keep=2) as store:
        store.save(4, state, ABOUT, warn=heard.append)
        store.wait(heard.append)
        assert len(heard) == 1 and "/4 is written, but older ones stay (" in heard[0]
        store.save(5, state, ABOUT, warn=heard.append)
    assert len(heard) == 1 and folder.steps_of(tmp_path) == [4, 5]  # and the end is no failure


def test_a_save_waits_for_a_copy_and_nothing_else(tmp_path, monkeypatch):
    """It returns before anything is hashed or written, by another thread; what is written over is saved as it was."""
    go, threads, real = threading.Event(), [], digests.of

    def slow(*content):
        assert go.wait(60)
        threads.append(threading.current_thread())
        return real(*content)

    monkeypatch.setattr(digests, "of", slow)
    state = {"a": {"w": np.arange(6.0, dtype=np.float32)}}
    with stores.Store(tmp_path) as store:
        store.save(1, state, ABOUT)
        state["a"]["w"] += 1
        assert threads == [] and folder.steps_of(tmp_path) == []
        go.set()
        store.wait()
        np.testing.assert_array_equal(store.field(1, "a")["w"], np.arange(6.0))
    assert len(threads) == 1 and threading.current_thread() not in threads


def test_a_read_waits_for_what_is_being_written(tmp_path):
    """Whoever saves may read at once."""
    with stores.Store(tmp_path) as store:
        store.save(1, parallel.born(init), ABOUT)
        assert store.about(1)["format"] == 1
        with pytest.raises(ConfigError, match="holds step 2 no more"):
            store.about(2)


def test_steps_are_folders_of_our_own_names(tmp_path):
    """A number as we write it, and a folder; what else lies there is somebody's."""
    for name in ("8", "0099", "003", "-3", "5x", "\u00b2", "12.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").touch()
    assert folder.steps_of(tmp_path) == [8]


def test_one_is_kept_where_one_is_asked_for_and_every_damaged_one(tmp_path):
    """Under a name of its own, however often a step is damaged."""
    assert write(tmp_path, 1, 2, 3, keep=1) is None
    assert folder.steps_of(tmp_path) == [3]
    for place in ("3", "3.1", "3.2"):
        (tmp_path / "3").mkdir(exist_ok=True)
        assert f"was moved to {tmp_path}/damaged/{place}" in folder.quarantined(tmp_path, 3, "cut")
    assert names(tmp_path / "damaged") == ["3", "3.1", "3.2"]
