"""A small encoder as a run's folder holds it, and the config of that run."""

import jax
import jax.numpy as jnp

from moco_jax import parallel
from moco_jax.config import Data, Eval, Views
from moco_jax.core.randomness import INIT, key
from moco_jax.state import Network
from tests import tiny

CONFIG = tiny.config(
    seed=5,
    views=Views(size=tiny.SIZE),
    data=Data(range=(0.0, 100.0), mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 1.0)),
    eval=Eval(resize=tiny.SIZE + 4),
)
SMALL = tiny.small_encoder(CONFIG, 3)


def begun(seed):
    """The small encoder as a run with this seed begins."""
    return parallel.born(lambda: Network(**SMALL.init(key(seed, 0, INIT))))


def plus(network, amount):
    return parallel.born(lambda: jax.tree.map(lambda a: jnp.asarray(a) + amount, parallel.host(network)))
