"""Micro-batches: the same means and rows as all at once."""

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.core.microbatch import microbatched


@pytest.mark.parametrize("scan", [False, True])
def test_means_and_rows_equal_those_of_all_rows_at_once(scan):
    """Equal micro-batches: the mean of their means is the mean; rows come back in order."""
    x = jnp.arange(24.0).reshape(12, 2)

    def function(rows):
        return {"mean": rows.mean(0)}, rows * 2

    whole, rows = microbatched(function, x, size=None, scan=scan)
    parts, part_rows = microbatched(function, x, size=4, scan=scan)
    np.testing.assert_allclose(parts["mean"], whole["mean"])
    np.testing.assert_array_equal(part_rows, rows)


@pytest.mark.parametrize("scan", [False, True])
def test_function_sees_contiguous_parts(scan):
    """Groups of batch norm are contiguous, so a part must be a run of neighbours."""
    _, firsts = microbatched(lambda r: ((), jnp.broadcast_to(r[:1], r.shape)), jnp.arange(6.0), size=2, scan=scan)
    np.testing.assert_array_equal(firsts, [0, 0, 2, 2, 4, 4])
