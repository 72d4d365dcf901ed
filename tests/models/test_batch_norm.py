"""Whose statistics an image is normalised with: groups of the global batch against plain numpy, wherever they lie."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models import batch_norm
from moco_jax.models.batch_norm import GroupBatchNorm, scaled

CHANNELS = 3
RUNNING = {"mean": np.array([0.3, -0.2, 0.1]), "var": np.array([1.5, 0.5, 2.0])}
AFFINE = {"scale": np.array([0.5, 1.5, -1.0]), "bias": np.array([0.1, 0.0, -0.3])}


def images(n, *shape, seed=0):
    """(n, *shape, CHANNELS) float64, every image with a mean and a spread of its own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *shape, CHANNELS))
    one = (n,) + (1,) * len(shape) + (CHANNELS,)
    return x * rng.uniform(0.5, 2, one) + rng.normal(size=one)


def oracle(x, group):
    """Output and running statistics after one step of torch's batch norm run on each group of `group` rows alone."""
    y, means, variances = np.empty_like(x), [], []
    for start in range(0, len(x), group):
        rows = x[start : start + group].reshape(-1, CHANNELS)
        mean, var = rows.mean(0), rows.var(0)
        y[start : start + group] = (x[start : start + group] - mean) / np.sqrt(var + 1e-5)
        means.append(mean)
        variances.append(rows.var(0, ddof=1))
    running = {
        "mean": 0.9 * RUNNING["mean"] + 0.1 * np.mean(means, 0),
        "var": 0.9 * RUNNING["var"] + 0.1 * np.mean(variances, 0),
    }
    return y * AFFINE["scale"] + AFFINE["bias"], running


def train(x, group, *, params=AFFINE, running=RUNNING, dtype=None):
    """Output and new running statistics in train mode."""
    dtype = dtype or x.dtype
    norm = GroupBatchNorm(group, dtype, jnp.promote_types(dtype, jnp.float32))
    y, changed = norm.apply({"params": params, "batch_stats": running}, x, train=True, mutable=["batch_stats"])
    return y, changed["batch_stats"]


@pytest.mark.parametrize(("group", "shape"), [(2, (3, 5)), (4, (3, 5)), (8, (3, 5)), (4, ())])
def test_groups_inside_a_device_are_torch_run_on_each_group(group, shape):
    """Biased variance normalises, unbiased variance is kept, momentum .1; plain jit, so no axis name is asked for."""
    with jax.enable_x64(True):
        x = images(8, *shape)
        y, running = jax.jit(lambda x: train(x, group))(x)
    expected, expected_running = oracle(x, group)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(running["mean"], expected_running["mean"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(running["var"], expected_running["var"], rtol=0, atol=1e-12)


def spread(x, group, devices):
    """Global output, gradients of a scalar of it, and running statistics averaged over devices."""

    def device(x):
        def loss(x, params):
            y, running = train(x, group, params=params)
            return jnp.sum(jnp.sin(y) * y), (y, running)

        (_, (y, running)), (dx, dparams) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, AFFINE)
        return y, dx, jax.lax.psum(dparams, "batch"), jax.lax.pmean(running, "batch")

    rows = x.reshape(devices, -1, *x.shape[1:])
    mapped = jax.pmap(device, axis_name="batch", out_axes=(0, 0, None, None), devices=jax.devices()[:devices])
    y, dx, dparams, running = jax.device_get(mapped(rows))
    return y.reshape(x.shape), dx.reshape(x.shape), dparams, running


@pytest.mark.parametrize(("group", "alone"), [(1, 1), (4, 4), (8, 8), (16, 16), (0, 16)])
def test_eight_devices_are_one_device(group, alone):
    """Forward, backward and running statistics of groups over 1/2, 2, 4 and 8 devices equal those inside one device."""
    with jax.enable_x64(True):
        x = images(16, 2, 3)
        many, one = spread(x, group, 8), spread(x, alone, 1)
    np.testing.assert_allclose(one[0], oracle(x, alone)[0], rtol=0, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), many, one)


def test_initialisation_has_no_collective():
    """Group 0 and groups over devices initialise outside of any mapped axis, to torch's values."""
    for group in (0, 64):
        norm = GroupBatchNorm(group, jnp.bfloat16, jnp.float32)
        variables = norm.init(jax.random.key(0), jnp.zeros((1, 2, 2, CHANNELS)), train=True)
        expected = {"params": {"scale": 1.0, "bias": 0.0}, "batch_stats": {"mean": 0.0, "var": 1.0}}
        assert jax.tree.map(lambda a: (a.shape, a.dtype.name), variables) == jax.tree.map(
            lambda _: ((CHANNELS,), "float32"), expected
        )
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.full(CHANNELS, b)), dict(variables), expected)


def test_variance_is_never_negative():
    """E[x^2] - E[x]^2 of a nearly constant channel rounds below zero; the output stays finite, the variance at zero."""
    values = np.array([1234.567, 77.7, 3333.3], np.float32)
    x = np.tile(values, (6, 7, 5, 1))
    flat = jnp.asarray(x).reshape(1, 6, 35, CHANNELS)
    unclamped = (flat * flat).mean((1, 2)) - flat.mean((1, 2)) ** 2
    assert unclamped.min() < -1e-3  # otherwise this test argues nothing
    zero = {"mean": np.zeros(CHANNELS, np.float32), "var": np.zeros(CHANNELS, np.float32)}
    affine = jax.tree.map(np.float32, AFFINE)
    y, running = train(x, 6, params=affine, running=zero)
    assert np.isfinite(y).all()
    assert np.min(running["var"]) == 0.0


@pytest.mark.parametrize(("offset", "limit"), [(0.0, 1e-6), (10.0, 1e-4), (100.0, 1e-2)])
def test_rounding_of_the_variance_grows_with_the_mean(offset, limit):
    """One pass in float32: off by about 1e-7 times (mean / deviation)^2, as docs/fidelity.md says of fact 18."""
    x = images(32, 16, 16).astype(np.float32)
    x = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)) + np.float32(offset)
    exact = x.astype(np.float64).var((0, 1, 2))
    moments = batch_norm.group_moments(jnp.asarray(x).reshape(1, 32, 256, -1), batch_norm.Layout(1, 32, 1))
    error = np.abs(np.asarray(moments[1][0], np.float64) / exact - 1).max()
    assert error < limit  # measured: 4e-8, 1e-5, and 3e-6 to 2e-3, by the luck of a rounding


def test_bfloat16_in_and_out_float32_between():
    """bfloat16 images give bfloat16 images, normalised by float32 statistics of the rounded values."""
    x = jnp.asarray(images(8, 4, 4) * 3 + 20, jnp.bfloat16)
    affine, running = jax.tree.map(np.float32, AFFINE), jax.tree.map(np.float32, RUNNING)
    y, new = train(x, 4, params=affine, running=running)
    assert y.dtype == jnp.bfloat16
    assert new["mean"].dtype == new["var"].dtype == jnp.float32
    expected, expected_running = oracle(np.asarray(x, np.float64), 4)
    np.testing.assert_allclose(y.astype(np.float32), expected, rtol=2**-8, atol=1e-3)
    np.testing.assert_allclose(new["mean"], expected_running["mean"], rtol=1e-5)
    np.testing.assert_allclose(new["var"], expected_running["var"], rtol=1e-4)


def test_evaluation_reads_running_statistics_only():
    """Eval mode is an affine map per channel, whatever the batch and the group (here: no axis, nothing divides)."""
    with jax.enable_x64(True):
        x = images(5, 2, 3)
        norm = GroupBatchNorm(0, jnp.float64, jnp.float64)
        y = norm.apply({"params": AFFINE, "batch_stats": RUNNING}, x, train=False)
    expected = (x - RUNNING["mean"]) / np.sqrt(RUNNING["var"] + 1e-5) * AFFINE["scale"] + AFFINE["bias"]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "group", "pixels", "message"),
    [
        (6, 4, 4, "6 images per device and bn.group_size 4"),
        (4, 6, 4, "4 images per device and bn.group_size 6"),
        (2, 6, 4, "bn.group_size 6 spans 3 devices at 2 images each, which does not divide 8 devices"),
        (2, 32, 4, "bn.group_size 32 spans 16 devices"),
        (4, -2, 4, "bn.group_size -2 is negative"),
        (4, 1, 1, "2 values per channel, a group here holds 1"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(n, group, pixels, message):
    """The refusal comes while tracing, before anything is compiled."""
    rows = jax.ShapeDtypeStruct((8, n, pixels, 1, CHANNELS), jnp.float32)
    affine, running = jax.tree.map(np.float32, AFFINE), jax.tree.map(np.float32, RUNNING)
    step = jax.vmap(lambda x: train(x, group, params=affine, running=running), axis_name="batch")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step, rows)


@pytest.mark.usefixtures("float64")
def test_the_gradient_written_out_is_that_of_the_product_and_sum():
    """Of values, gain and shift, of two groups of three images of five pixels."""
    rng = np.random.default_rng(0)
    y, gain, shift = (jnp.asarray(rng.normal(size=shape)) for shape in ((2, 3, 5, 4), (2, 4), (2, 4)))
    gradient = jnp.asarray(rng.normal(size=y.shape))

    def plain(y, gain, shift):
        return y * gain[:, None, None] + shift[:, None, None]

    found, expected = (jax.vjp(f, y, gain, shift) for f in (scaled, plain))
    assert np.array_equal(found[0], expected[0])
    for a, b in zip(found[1](gradient), expected[1](gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


def test_no_long_sum_of_the_gradient_has_an_axis_of_length_one():
    """Of one group on a device: XLA:CPU takes sixty times as long for a sum of products that has one."""
    norm = GroupBatchNorm(4, jnp.float32, jnp.float32)
    x = jnp.ones((4, 5, 5, 3))
    variables = norm.init(jax.random.key(0), x, train=True)

    def loss(params, x):
        y, _ = norm.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
        return (y**2).sum()

    text = jax.jit(jax.grad(loss, (0, 1))).lower(variables["params"], x).as_text()
    summed = [
        tuple(map(int, s.split("x"))) for s in re.findall(r"across dimensions = .* : \(tensor<([\dx]+)xf32>", text)
    ]
    backward = [shape for shape in summed if math.prod(shape) == x.size and shape != x.shape][-2:]
    assert backward == [(4, 25, 3)] * 2, summed
