"""The seed of a config reaches all that is random in a mechanism: each purpose, one at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.config import EndToEnd
from moco_jax.core import randomness
from tests import tiny

STORED = tiny.images(2, np.float32)
CASES = {
    "moco": (tiny.config(), ("INIT", "QUEUE", "CROP", "AUGMENT", "SHUFFLE")),
    "end to end": (
        tiny.end_to_end(end_to_end=EndToEnd(0.2, symmetric=True)),
        ("INIT", "CROP", "AUGMENT", "SHUFFLE"),
    ),
    "bank": (tiny.memory_bank(), ("INIT", "BANK", "CROP", "AUGMENT", "NEGATIVES")),
}


@functools.cache
def digest(case, seed):
    """A number that a start and a step leave."""
    c = tiny.dataclasses.replace(CASES[case][0], seed=seed)
    m = tiny.mechanism(c, STORED, tiny.LIGHT, encoder=tiny.small_encoder(c, 2))
    state = jax.jit(m.init)()
    batch = jax.tree.map(lambda a: a[None], tiny.batches(c, 1)[0])
    step = jax.jit(jax.vmap(m.step, axis_name="batch", in_axes=(None, 0, None)))
    after, metrics = step(state, batch, {"images": jnp.asarray(STORED)})
    leaves = [*jax.tree.leaves(state), *jax.tree.leaves(after), metrics["loss"]]
    return tuple(float(jnp.sum(jnp.abs(leaf))) for leaf in leaves)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "purpose"), [(case, p) for case, (_, purposes) in CASES.items() for p in purposes])
def test_the_seed_reaches(case, purpose, monkeypatch):
    """Where one purpose alone forgets its seed, the numbers are others than those of the whole."""
    whole, own = digest(case, 5), randomness.key
    value = getattr(randomness, purpose)

    def forgets(seed, step, kind):
        return own(0 if kind == value else seed, step, kind)

    for module in ("moco", "end_to_end", "memory_bank"):
        monkeypatch.setattr(f"moco_jax.mechanisms.{module}.key", forgets)
    monkeypatch.setattr("moco_jax.core.randomness.key", forgets)  # as the shuffle calls it
    assert digest.__wrapped__(case, 5) != whole
