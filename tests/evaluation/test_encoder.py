"""A run's folder opened for evaluation: the trained online network, the untrained one, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import load_encoder, parallel
from moco_jax.checkpoints.store import Store, describe
from moco_jax.config import ConfigError, Data, Views, to_json
from moco_jax.core.randomness import INIT, key
from moco_jax.evaluation import encoder as frozen
from moco_jax.state import Network, State
from tests import tiny

CONFIG = tiny.config(
    seed=5, views=Views(size=tiny.SIZE), data=Data(range=(0.0, 100.0), mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 1.0))
)
SMALL = tiny.small_encoder(CONFIG, 3)


def begun(seed):
    """The small encoder as a run with this seed begins."""
    return parallel.born(lambda: Network(**SMALL.init(key(seed, 0, INIT))))


def plus(network, amount):
    return parallel.born(lambda: jax.tree.map(lambda a: jnp.asarray(a) + amount, parallel.host(network)))


@pytest.fixture(scope="module")
def fresh():
    """What the config's seed begins with."""
    return begun(CONFIG.seed)


@pytest.fixture(scope="module")
def online(fresh):
    """What the newest checkpoint holds as its online network."""
    return plus(fresh, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, fresh, online):
    """A run with two checkpoints, in which online and target of both are four different networks."""
    workdir = tmp_path_factory.mktemp("run")
    objects = {"encoder": "small", "source": "mine", "recipe": "", "pairs": ""}
    values = frozen.Values(3, "uint8", 0.0, 100.0)
    about = {**describe(to_json(CONFIG), objects), "values": values._asdict(), "total_steps": 20}
    with Store(workdir / "checkpoints", keep=2) as store:
        for step, ours in ((4, plus(fresh, 3.0)), (8, online)):
            target = plus(ours, 1.0)
            state = State(parallel.born(lambda n=step: jnp.asarray(n)), ours, target, {}, {})
            store.save(step, state, about)
    return workdir


@pytest.fixture(scope="module")
def loaded(folder):
    """The folder, opened with the encoder that it was trained with."""
    return frozen.load(folder, encoder=SMALL)


def test_the_trained_network_is_the_newest_online_one(loaded, folder, online):
    """Not the target, not an older step; read anew it is still the same."""
    assert loaded.step == 8
    assert frozen.digest(loaded.trained.network) == frozen.digest(online)
    assert frozen.stored_digest(folder, 8, loaded.trained.network) == frozen.digest(online)
    assert frozen.stored_digest(folder, 4, loaded.trained.network) != frozen.digest(online)
    assert frozen.digest(load_encoder(folder, encoder=SMALL).network) == frozen.digest(online)


def test_the_untrained_network_is_what_the_runs_seed_begins_with(loaded, fresh):
    """The baseline of a run is its own beginning; another seed would be another encoder."""
    assert frozen.digest(loaded.untrained.network) == frozen.digest(fresh)
    assert frozen.digest(loaded.untrained.network) != frozen.digest(begun(0))


def test_config_and_source_come_from_the_checkpoint(loaded):
    """Nothing but the folder is needed."""
    assert loaded.config == CONFIG and loaded.source == "mine" and loaded.total_steps == 20
    for it in loaded[:2]:
        assert it.label == "small" and it.view_shape == (tiny.SIZE, tiny.SIZE, 3)


def test_features_are_of_standardised_views_by_each_network(loaded, online, fresh):
    """Stored values 0..100 are mapped to 0..1, then mean and std; both networks are fed alike."""
    raw = np.random.default_rng(0).integers(0, 101, (8, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    x = (raw / 100.0 - np.array([0.5, 0.4, 0.3])) / np.array([0.25, 0.5, 1.0])
    for it, network in ((loaded.trained, online), (loaded.untrained, fresh)):
        network = parallel.host(network)
        wanted = SMALL.features(network.params, network.batch_stats, jnp.asarray(x, jnp.float32))
        got = it.features(raw)
        for name in ("backbone", "head"):
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, atol=1e-4)


def test_another_encoder_is_refused(folder):
    """By its label: one of the user's own, and the config's where none is given."""
    with pytest.raises(ConfigError, match="was trained with encoder 'small', not 'other': give the same one"):
        frozen.load(folder, encoder=SMALL._replace(label="other"))
    with pytest.raises(ConfigError, match="was trained with encoder 'small', not 'resnet_tiny"):
        frozen.load(folder)


def test_a_folder_without_a_finished_checkpoint_is_refused(tmp_path):
    """Training that has not saved yet, and a folder where nobody ever trained."""
    with pytest.raises(ConfigError, match="no checkpoints in"):
        frozen.load(tmp_path, encoder=SMALL)
    Store(tmp_path / "checkpoints").__exit__()
    with pytest.raises(ConfigError, match="holds no finished checkpoint yet"):
        frozen.load(tmp_path, encoder=SMALL)
