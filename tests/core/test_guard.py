"""What holds a step back: one number of one leaf is enough, and then nothing of it stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.core import guard

TREE = {"a": jnp.arange(6.0).reshape(2, 3), "b": [jnp.ones(()), jnp.full((4,), 1e38)], "c": jnp.arange(3)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("leaf", [0, 1, 2])
def test_one_number_is_enough(value, leaf):
    """In any leaf; large ones whose sum would overflow are none."""
    assert bool(guard.finite(TREE))
    leaves, structure = jax.tree.flatten(TREE)
    leaves[leaf] = leaves[leaf].reshape(-1).at[-1].set(value).reshape(leaves[leaf].shape)
    assert not bool(guard.finite(structure.unflatten(leaves)))


def test_old_or_new_never_a_mixture():
    """Not even of a leaf that is itself finite."""
    new = jax.tree.map(lambda a: a + 1, TREE)
    for ok, expected in ((True, new), (False, TREE)):
        jax.tree.map(np.testing.assert_array_equal, guard.held(jnp.asarray(ok), new, TREE), expected)
