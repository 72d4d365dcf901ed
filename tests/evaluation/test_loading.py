"""A run's folder opened for evaluation: the trained online network, the untrained one, and what is refused."""

import pytest

from moco_jax import load_encoder
from moco_jax.checkpoints.store import Store
from moco_jax.config import ConfigError
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import loading
from tests import tiny
from tests.evaluation.begun import CONFIG, SMALL, begun


def test_the_trained_network_is_the_newest_online_one(loaded, folder, online):
    """Not the target, not an older step; read anew it is still the same."""
    assert loaded.step == 8
    assert frozen.digest(loaded.trained.network) == frozen.digest(online)
    assert loading.stored_digest(folder, 8, loaded.trained.network) == frozen.digest(online)
    assert loading.stored_digest(folder, 4, loaded.trained.network) != frozen.digest(online)
    assert loading.stored_digest(folder, 2, loaded.trained.network) is None  # removed, or never there
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


def test_another_encoder_is_refused(folder):
    """By its label: one of the user's own, and the config's where none is given."""
    with pytest.raises(ConfigError, match="trained with encoder 'small', not 'other': give the same one from Python"):
        loading.load(folder, encoder=SMALL._replace(label="other"))
    with pytest.raises(ConfigError, match="with encoder 'small', not 'resnet_tiny.*': give that one .* as encoder="):
        load_encoder(folder)


def test_a_folder_without_a_finished_checkpoint_is_refused(tmp_path):
    """No folder, one where nobody ever trained, training that has not saved yet, and one that began to."""
    with pytest.raises(ConfigError, match="there is no .*/none: give a run's folder, .* or a folder of timm or transf"):
        load_encoder(tmp_path / "none", encoder=SMALL)
    with pytest.raises(ConfigError, match="is no run's folder, no file of weights, and no folder with config.json and"):
        load_encoder(tmp_path, encoder=SMALL)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no finished checkpoint yet"):
        load_encoder(tmp_path, encoder=SMALL)
    Store(tmp_path / "checkpoints").__exit__()
    with pytest.raises(ConfigError, match="holds no finished checkpoint yet"):
        load_encoder(tmp_path, encoder=SMALL)
