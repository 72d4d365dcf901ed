"""Digests: any change of a leaf, a description or the list itself is a change of what is compared."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.checkpoints import digests

LEAF = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "other",
    [
        LEAF + np.float32(1e-6),
        LEAF + np.float32([[0, 0, 0], [0, 0, 1e-6]]),
        LEAF.reshape(3, 2),
        LEAF.view(np.int32),
        np.where(LEAF == 0, np.float32(-0.0), LEAF),  # equal as numbers, not as bits
        LEAF.astype(np.float64),
    ],
)
def test_another_leaf_has_another_entry(other):
    """Values to the bit, shape and type."""
    assert digests.entry(other) != digests.entry(LEAF)


@pytest.mark.parametrize("leaf", [np.int32(7) + np.zeros((), np.int32), np.asarray(jnp.ones(3, jnp.bfloat16)), LEAF.T])
def test_any_leaf_has_an_entry(leaf):
    """Scalars, types that numpy does not know, other orders in memory: the entry is of the values in C order."""
    assert digests.entry(leaf) == digests.entry(np.array(leaf, order="C"))
    assert digests.entry(leaf)[:2] == [str(leaf.dtype), list(leaf.shape)]


def test_a_list_knows_itself():
    """As it is read back from JSON; a changed digest, name or description in it is refused."""
    listed = digests.of({"a/b": LEAF}, {"format": 1})
    text = json.dumps(listed)
    assert digests.checked(json.loads(text)) == listed
    for old, new in (("a/b", "a/c"), (listed["about"], "0" * 64), ('"list"', '"lost"'), (text, "[]")):
        with pytest.raises(ValueError, match="is not the one that was saved"):
            digests.checked(json.loads(text.replace(old, new)))


def test_the_order_of_keys_and_tuples_do_not_matter():
    """JSON gives lists for tuples, and a file may be written in another order."""
    assert digests.of_json({"a": (1, 2), "b": 0}) == digests.of_json({"b": 0, "a": [1, 2]})
    assert digests.of_json({"a": 1}) != digests.of_json({"a": 2})
