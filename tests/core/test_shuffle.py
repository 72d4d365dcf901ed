"""Shuffling over devices: a permutation, undone by its inverse, that really mixes the groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.core import axis, shuffle


def over(devices, function, rows):
    """`function` of each device's rows, on `devices` devices by vmap."""
    split = rows.reshape(devices, -1, *rows.shape[1:])
    return jax.vmap(function, axis_name=axis.AXIS)(split)


@pytest.mark.parametrize("block", [4, 8, 16])
def test_permutation_stays_inside_its_blocks(block):
    """Sorted inside every block, the sources are that block's own positions."""
    source = np.asarray(shuffle.permutation(jax.random.key(0), 16, block)).reshape(-1, block)
    np.testing.assert_array_equal(np.sort(source, 1), np.arange(16).reshape(-1, block))
    if block < 16:
        assert len({tuple(row % block) for row in source}) > 1  # blocks are permuted apart


def test_every_block_size_follows_numpy_on_one_device():
    """shuffled[i] = x[source[i]], and the returned positions say so."""
    x, source = jnp.arange(12.0)[:, None], shuffle.permutation(jax.random.key(1), 12, 6)
    rows, positions = over(1, lambda x: shuffle.shuffled(x, source, 6), x)
    np.testing.assert_array_equal(rows[0], np.asarray(x)[np.asarray(source)])
    np.testing.assert_array_equal(positions[0], source)


@pytest.mark.parametrize(("devices", "block"), [(2, 4), (2, 8), (4, 8)])
def test_blocks_inside_a_device_do_not_depend_on_the_devices(devices, block):
    """One device or several: the same row lands in the same slot of the global batch."""
    x, source = jnp.arange(32.0)[:, None], shuffle.permutation(jax.random.key(2), 32, block)
    one, _ = over(1, lambda x: shuffle.shuffled(x, source, block), x)
    many, _ = over(devices, lambda x: shuffle.shuffled(x, source, block), x)
    np.testing.assert_array_equal(many.reshape(32, 1), one.reshape(32, 1))


@pytest.mark.parametrize("block", [8, 16])
def test_blocks_over_several_devices_gather_only_among_them(block):
    """Blocks of two and of four devices, through pmap: collectives inside subsets of the axis."""
    x, source = jnp.arange(32.0)[:, None], shuffle.permutation(jax.random.key(3), 32, block)
    mapped = jax.pmap(lambda x: shuffle.shuffled(x, source, block)[0], axis_name=axis.AXIS, devices=jax.devices())
    np.testing.assert_array_equal(mapped(x.reshape(8, 4, 1)).reshape(32), np.asarray(source))


def test_unshuffle_inverts_shuffle():
    """Gathered keys come back to the row of their query."""
    x, source = jnp.arange(16.0)[:, None], shuffle.permutation(jax.random.key(4), 16, 8)

    def round_trip(x):
        rows, _ = shuffle.shuffled(x, source, 8)
        return axis.mine(shuffle.unshuffled(axis.gather(rows), source), x.shape[0])

    np.testing.assert_array_equal(over(2, round_trip, x).reshape(16), np.arange(16.0))


def test_every_key_group_holds_its_expected_share_of_every_query_group():
    """Over many draws, a key group of 8 in a block of 32 holds 2 images of each of the 4 query groups: 8 * 8 / 32.

    The share that a leak needs, all 8 of its own query group, does not stand out.
    """
    draws = [np.asarray(shuffle.permutation(jax.random.key(i), 32, 32)) for i in range(200)]
    shares = np.zeros((4, 4))
    for source in draws:
        np.add.at(shares, (np.repeat(np.arange(4), 8), source // 8), 1)
    # A hypergeometric count has standard deviation 1.08; over 200 draws its mean has .076.
    np.testing.assert_allclose(shares / len(draws), 2.0, atol=0.35)
