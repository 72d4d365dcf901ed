"""A run's folder with checkpoints, made once for a file of tests."""

import jax.numpy as jnp
import pytest

from moco_jax import parallel
from moco_jax.checkpoints.store import Store, describe
from moco_jax.config import to_json
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import loading
from moco_jax.state import State
from tests.evaluation.begun import CONFIG, SMALL, begun, plus


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
    return loading.load(folder, encoder=SMALL)
