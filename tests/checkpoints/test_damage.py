"""Damage: whatever happens to the files of a checkpoint, it is refused in one line, or nothing that is read changed."""

import errno
import random
import shutil

import numpy as np
import pytest

from benchmarks import flips
from moco_jax import parallel
from moco_jax.checkpoints import arrays
from moco_jax.checkpoints import store as stores
from moco_jax.config import ConfigError
from tests.checkpoints.test_store import ABOUT, init


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three checkpoints of a small state, made once."""
    folder = tmp_path_factory.mktemp("saved")
    state = parallel.born(init)
    with stores.Store(folder, keep=3) as store:
        for step in (1, 2, 3):
            store.save(step, state, ABOUT | {"at": step})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of them to break."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def data_files(step):
    """The files of a checkpoint's state that hold values; which of them are read depends on how they were written."""
    return list((step / "state").rglob("d/*"))


def flip(path, at=0.5):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def garble_leaf(step):
    """Another state of the same shapes under the digests of the first: what no checksum of a format can see."""
    tree = arrays.read(step, arrays.fields(step))
    tree["memory"]["queue"] = tree["memory"]["queue"] + np.float32(1e-3)
    about, listed = arrays.read_json(step, "about"), arrays.read_json(step, "digests")
    shutil.rmtree(step)
    arrays.write(step, tree, {"about": about, "digests": listed})


def without_leaf(step):
    """A state that lacks a leaf."""
    tree = arrays.read(step, arrays.fields(step))
    del tree["memory"]["queue"]
    about, listed = arrays.read_json(step, "about"), arrays.read_json(step, "digests")
    shutil.rmtree(step)
    arrays.write(step, tree, {"about": about, "digests": listed})


DAMAGES = {
    "a leaf": (garble_leaf, r"leaf memory/queue is not what was saved"),
    "a leaf less": (without_leaf, "its state lacks (leaf )?memory"),
    "the data cut": (lambda step: [p.write_bytes(b"") for p in data_files(step)], "its state cannot be read: "),
    "the data gone": (lambda step: [p.unlink() for p in data_files(step)], "its state cannot be read: "),
    "the state gone": (lambda step: shutil.rmtree(step / "state"), "its state cannot be read: "),
    "the names": (lambda step: (step / "state/_METADATA").write_text("{"), "its state cannot be read: JSONDecodeError"),
    "no description": (lambda step: (step / "about/metadata").unlink(), "its description cannot be read: FileNotFound"),
    "half of it": (lambda step: (step / "about/metadata").write_text('{"format": 1'), "its description cannot be read"),
    "another": (lambda step: (step / "about/metadata").write_text('{"format": 1}'), "its description is not what was"),
    "no digests": (lambda step: shutil.rmtree(step / "digests"), "its digests cannot be read: FileNotFoundError"),
    "other digests": (lambda step: flip(step / "digests/metadata"), "its digests cannot be read: "),
    "all": (lambda step: [p.unlink() for p in step.rglob("*") if p.is_file()], "its (digests|state) cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_in_a_line_by_whatever_reads_it(folder, name):
    """A reader refuses it, moves nothing, and says which folder and which step to use instead."""
    damage, fault = DAMAGES[name]
    damage(folder / "3")
    of_about, of_all = "description" in fault, "digests" in fault
    with stores.Store(folder, read_only=True) as store:
        reads = [lambda: store.about(3)] * (of_about or of_all)
        if not of_about:
            reads += [lambda: store.restore(3, parallel.abstract(init)), lambda: store.tree(3)]
            part = parallel.abstract(lambda: init().memory)
            reads += [lambda: store.field(3, "memory"), lambda: store.restore_part(3, part, "memory")]
        for read in reads:
            with pytest.raises(stores.Damaged, match=fault) as error:
                read()
            assert "\n" not in str(error.value)
            assert f"checkpoint {folder}/3 is damaged" in str(error.value)
            assert "move that folder elsewhere to use step 2" in str(error.value)
        assert store.latest() == 3 and store.described()[0] == (2 if of_about or of_all else 3)


@pytest.mark.parametrize("name", DAMAGES)
def test_training_goes_back_to_the_newest_whole_one(folder, name):
    """Two damaged in a row: both are named and moved, nothing is deleted, and neither is a step any more."""
    damage = DAMAGES[name][0]
    for step in ("3", "2"):
        damage(folder / step)
    with stores.Store(folder, keep=3) as store:
        found, lines = store.whole()
        assert found == 1 and store.latest() == 1 and len(lines) == 2 and not any("\n" in line for line in lines)
        for line, step in zip(lines, (3, 2), strict=True):
            assert f"checkpoint {folder}/{step} is damaged (" in line
            assert f"was moved to {folder}/damaged/{step}; continuing from step 1" in line
            assert (folder / "damaged" / str(step)).is_dir()
        np.testing.assert_array_equal(store.restore(1, parallel.abstract(init)).memory["queue"], np.ones((4, 2)))
        store.save(3, parallel.born(init), ABOUT)
    damage(folder / "3")
    with stores.Store(folder) as store:
        assert store.whole()[0] == 1 and (folder / "damaged/3.1").is_dir()


def test_where_none_is_whole_nothing_is_moved(folder):
    """One error that names each, as often as it is asked: the next start must not find an empty folder, and begin."""
    for step in "123":
        DAMAGES["no digests"][0](folder / step)
    for _ in range(2):
        with (
            stores.Store(folder) as store,
            pytest.raises(ConfigError, match=r"no checkpoint in .* is whole \(3: .*; 2: .*; 1: .*nothing was trained"),
        ):
            store.whole()
        assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3"]
    with stores.Store(folder, read_only=True) as store, pytest.raises(ConfigError, match="is whole"):
        store.described()


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "no"),
        MemoryError(),
        ValueError("PERMISSION_DENIED: Error opening"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EIO, "Input/output error"),
    ],
)
def test_what_may_be_read_another_time_is_not_called_damaged(folder, monkeypatch, error):
    """A checkpoint that is whole stays where it is."""

    def fails(*_):
        raise error

    monkeypatch.setattr(arrays, "read", fails)
    with stores.Store(folder, keep=3) as store:
        with pytest.raises(ConfigError, match="3 cannot be read now .*; try again"):
            store.whole()
        with pytest.raises(ConfigError, match="3 cannot be read now .*; try again") as raised:
            store.tree(3)
    assert not isinstance(raised.value, stores.Damaged) and (folder / "3").is_dir()


def test_another_model_is_not_called_damaged(folder):
    """It is refused by name, also when nothing of the state could be read: shapes are in the digests."""
    shutil.rmtree(folder / "3" / "state")
    other = parallel.abstract(lambda: init().replace(memory={"queue": np.ones((8, 2), np.float32)}))
    with stores.Store(folder, read_only=True) as store, pytest.raises(ConfigError, match="this run needs float32"):
        store.restore(3, other)


def test_no_flip_cut_or_deletion_is_silent(folder):
    """Every file of a checkpoint, one damage at a time: refused in one line, or nothing that is read changed."""
    like = parallel.abstract(init)
    found = flips.counts(folder, 3, like, flips=15, rng=random.Random(0))
    assert set(found) == {"deleted", "cut to nothing", "cut to half", "flipped"}
    for kind, outcomes in found.items():
        assert outcomes["silent"] == outcomes["unexplained"] == 0, (kind, outcomes)
        assert outcomes["refused"] >= 5, (kind, outcomes)
