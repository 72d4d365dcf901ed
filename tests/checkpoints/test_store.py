"""Checkpoints: what is saved comes back, placed and typed; what does not fit is refused by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import parallel
from moco_jax.checkpoints import store as stores
from moco_jax.checkpoints import verified
from moco_jax.config import Config, ConfigError, to_json
from moco_jax.state import Network, State


def init():
    return State(
        step=jnp.asarray(3, jnp.int32),
        online=Network({"backbone": {"w": jnp.arange(6.0).reshape(2, 3)}}, {"backbone": {"mean": jnp.ones(2)}}),
        target=Network({"backbone": {"w": jnp.ones((2, 3))}}, {"backbone": {"mean": jnp.zeros(2)}}),
        optimizer=({}, [jnp.ones((2, 3))]),
        memory={"queue": jnp.ones((4, 2))},
    )


ABOUT = stores.describe(to_json(Config()), {"encoder": "tiny"})


@pytest.fixture
def folder(tmp_path):
    state = parallel.born(init)
    with stores.Store(tmp_path, keep=2) as store:
        for step in (1, 2, 3):
            store.save(step, state, ABOUT)
    return tmp_path


def test_restores_every_leaf_where_the_step_wants_it(folder):
    """Values, dtypes and the replicated sharding of eight devices; only the newest two are kept."""
    store = stores.Store(folder, keep=2)
    assert store.latest() == 3
    restored = store.restore(3, parallel.abstract(init))
    jax.tree.map(np.testing.assert_array_equal, parallel.host(restored), parallel.host(parallel.born(init)))
    assert all(a.sharding == parallel.replicated() for a in jax.tree.leaves(restored))
    assert sorted(p.name for p in folder.iterdir() if p.name.isdigit()) == ["2", "3"]


def test_checkpoint_describes_itself(folder):
    """Resolved config, labels, format and versions are inside: nothing else is needed to continue."""
    about = stores.Store(folder, read_only=True).about(3)
    assert (
        about == json.loads(json.dumps(ABOUT)) and about["format"] == 1 and about["versions"]["jax"] == jax.__version__
    )


def test_part_is_restored_alone(folder):
    """An encoder needs no optimizer and no queue."""
    store = stores.Store(folder, read_only=True)
    online = store.restore_part(3, parallel.born(lambda: init().online), "online")
    np.testing.assert_array_equal(online.params["backbone"]["w"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.replace(memory={"queue": jnp.ones((8, 2))}),
            r"memory/queue is float32\(4, 2\), .*float32\(8, 2\)",
        ),
        (lambda s: s.replace(memory={"queue": jnp.ones((4, 2), jnp.bfloat16)}), "memory/queue is float32"),
        (lambda s: s.replace(memory={"bank": jnp.ones((4, 2))}), "of another model: .* lacks memory/bank"),
        (lambda s: s.replace(memory={}), "this run lacks, memory/queue"),
    ],
)
def test_what_does_not_fit_is_named(folder, change, message):
    """Orbax would cast another dtype in silence, and name no leaf for another shape."""
    store = stores.Store(folder, read_only=True)
    with pytest.raises(ConfigError, match=message):
        store.restore(3, parallel.abstract(lambda: change(init())))


def test_other_format_is_refused(tmp_path):
    """A future format must not be read as this one."""
    store = stores.Store(tmp_path)
    store.save(1, parallel.born(init), ABOUT | {"format": 2})
    with pytest.raises(ConfigError, match="has format version 2, moco_jax .* reads version 1"):
        store.about(1)


def test_no_folder_is_refused(tmp_path):
    """Evaluating what was never trained."""
    with pytest.raises(ConfigError, match="no checkpoints in"):
        stores.Store(tmp_path / "none", read_only=True)


def test_saving_twice_is_an_error(folder):
    """Orbax answers False and goes on; a caller would believe that it saved."""
    store = stores.Store(folder, keep=2)
    with pytest.raises(RuntimeError, match="checkpoint 3 was not written"):
        store.save(3, parallel.born(init), ABOUT)


def test_json_is_written_whole_and_damage_is_named(tmp_path):
    """A half-written config.json must not start another run."""
    path = tmp_path / "config.json"
    assert stores.read_json(path) is None
    stores.write_json(path, {"a": 1})
    assert stores.read_json(path) == {"a": 1} and json.loads(path.read_text()) == {"a": 1}
    path.write_text('{"a": ')
    with pytest.raises(ConfigError, match="is damaged"):
        stores.read_json(path)


def test_a_folder_is_held_by_one_run(tmp_path):
    """Two runs would delete each other's checkpoints; the hold ends with the run."""
    with (
        stores.exclusive(tmp_path),
        pytest.raises(ConfigError, match="another process is at work in"),
        stores.exclusive(tmp_path),
    ):
        pass
    with stores.exclusive(tmp_path):
        pass


@pytest.mark.parametrize("item", ["about", "state"])
def test_a_damaged_checkpoint_names_its_folder(folder, item):
    """Orbax says which byte; a user needs to know which folder, and what to do."""
    import shutil

    shutil.rmtree(folder / "3" / item)
    store = stores.Store(folder, read_only=True)
    with pytest.raises(
        ConfigError, match=r"/3 is damaged .* cannot be read: .*move that folder elsewhere to use step 2"
    ):
        store.about(3) if item == "about" else store.restore(3, parallel.abstract(init))


def test_a_checkpoint_that_its_run_removed_meanwhile_is_not_called_damaged(folder):
    """Nobody is told to delete a folder of a run that is going."""
    import shutil

    store = stores.Store(folder, read_only=True)
    shutil.rmtree(folder / "3")
    with pytest.raises(ConfigError, match="holds step 3 no more: its run has trained on meanwhile; try again"):
        store.restore(3, parallel.abstract(init))


@pytest.mark.parametrize("content", [b"[]", b"{}", b"\xff\xfe\x00"])
def test_json_that_is_no_object_is_damaged(tmp_path, content):
    """Empty, a list, no text at all."""
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        stores.read_json(tmp_path / "config.json")


def test_a_tree_is_the_whole_state_without_a_template(folder):
    """Nested dicts and lists of numpy arrays on the host, leaf for leaf what was saved, of whatever mechanism."""
    tree = stores.Store(folder, read_only=True).tree(3)
    assert type(tree) is dict and type(tree["online"]["params"]["backbone"]) is dict
    found, saved = verified.leaves(tree), verified.leaves(parallel.host(init()))
    assert found.keys() == saved.keys() and "optimizer/1/0" in found
    for name, leaf in saved.items():
        assert isinstance(found[name], np.ndarray) and found[name].dtype == leaf.dtype, name
        np.testing.assert_array_equal(found[name], leaf)


def test_a_tree_of_a_damaged_checkpoint_names_its_folder(folder):
    """As `restore` does."""
    import shutil

    shutil.rmtree(folder / "3" / "state")
    with pytest.raises(
        ConfigError, match=r"/3 is damaged .* cannot be read: .*move that folder elsewhere to use step 2"
    ):
        stores.Store(folder, read_only=True).tree(3)


def test_leaves_are_named_alike_in_dicts_and_dataclasses():
    """What is compared across programs: a State, and the dicts that it is read back as."""
    state = init()
    as_dicts = {
        "step": state.step,
        **{
            part: {"params": n.params, "batch_stats": n.batch_stats}
            for part, n in (("online", state.online), ("target", state.target))
        },
        "optimizer": list(state.optimizer),
        "memory": state.memory,
    }
    assert verified.leaves(state).keys() == verified.leaves(as_dicts).keys()
    names = verified.leaves(state)
    assert names["online/params/backbone/w"] is state.online.params["backbone"]["w"]
    assert {"step", "optimizer/1/0", "memory/queue"} <= names.keys()
