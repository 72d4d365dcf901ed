"""A run's folder whose every number is another, without training one."""

import dataclasses

import jax
import numpy as np

from moco_jax import parallel
from moco_jax.checkpoints.store import Store, describe, write_json
from moco_jax.config import Data, Eval, Model, Views, to_json
from tests import tiny

STEPS_PER_EPOCH = 4


def config(channels=3, size=16, resize=None, **changes):
    """A tiny run of five epochs of four steps, in the notebook's layout unless `stem` says otherwise."""
    model = {"width": 4, "dim": 8, "dtype": "float32"} | changes.pop("model", {})
    return tiny.config(
        model=Model(**model),
        data=Data(mean=(0.4,) * channels, std=(0.3,) * channels),
        views=Views(recipe="moco_v2" if channels == 3 else "bands", size=size),
        eval=Eval(every_epochs=0, resize=resize or size + 4),
        **changes,
    )


def write(folder, step=8, channels=3, seed=0, size=16, about=None, **changes):
    """The folder of a run at a step, `about` added to its description; returns that and its state, of numpy arrays."""
    c = config(channels, size, **changes)
    shapes = jax.eval_shape(tiny.mechanism(c, tiny.images(channels)).init)
    rng = np.random.default_rng(seed)

    def some(leaf):
        if np.issubdtype(leaf.dtype, np.integer):
            return rng.integers(0, 8, leaf.shape).astype(leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 10  # so that fifty layers overflow nothing
        return (rng.standard_normal(leaf.shape) / np.sqrt(fan_in)).astype(leaf.dtype)

    state = jax.tree.map(some, shapes)
    stats = [
        jax.tree.map(lambda a: np.abs(a) + 1, network.batch_stats) for network in (state.online, state.target)
    ]  # variances
    state = dataclasses.replace(
        state,
        step=np.asarray(step, np.int32),
        online=state.online.replace(batch_stats=stats[0]),
        target=state.target.replace(batch_stats=stats[1]),
    )
    about = {
        **describe(to_json(c), {"encoder": "tiny", "source": ""}),
        "values": {"channels": channels, "dtype": "uint8", "low": 0.0, "high": 255.0},
        "records": {"count": tiny.RECORDS, "fingerprint": "f"},
        "total_steps": c.train.epochs * STEPS_PER_EPOCH,
        **(about or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", about)
    with Store(folder / "checkpoints") as store:
        store.save(step, parallel.put_data(state), about)
    return about, state
