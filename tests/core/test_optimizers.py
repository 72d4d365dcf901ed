"""SGD against torch.optim.SGD written out in numpy."""

import jax.numpy as jnp
import numpy as np

from moco_jax.core.optimizers import sgd


def test_follows_torch_sgd_with_a_changing_rate():
    """buffer = .9 buffer + (g + wd p), first buffer undamped; p -= rate * buffer: rate outside the momentum."""
    schedule = lambda step: jnp.asarray([0.1, 0.1, 0.01])[step]  # noqa: E731
    optimizer = sgd(schedule, momentum=0.9, weight_decay=0.1)
    params = {"kernel": jnp.asarray([[1.0, -2.0]]), "bn_scale": jnp.asarray(3.0)}
    state = optimizer.init(params)
    p, buffer = {k: np.array(v, float) for k, v in params.items()}, dict.fromkeys(params, 0.0)
    for step, rate in enumerate((0.1, 0.1, 0.01)):
        gradients = {"kernel": jnp.asarray([[0.5, step]], jnp.float32), "bn_scale": jnp.asarray(-1.0)}
        params, state = optimizer.update(gradients, state, params, jnp.asarray(step))
        for k in p:
            buffer[k] = 0.9 * buffer[k] + np.asarray(gradients[k]) + 0.1 * p[k]
            p[k] = p[k] - rate * buffer[k]
            np.testing.assert_allclose(params[k], p[k], rtol=1e-6)


def test_decay_reaches_scalars_and_vectors():
    """The original decays batch norm and biases too: with zero gradient every parameter shrinks."""
    optimizer = sgd(lambda step: jnp.asarray(1.0), momentum=0.0, weight_decay=0.5)
    params = {"scale": jnp.asarray([2.0]), "bias": jnp.asarray(4.0)}
    zeros = {"scale": jnp.asarray([0.0]), "bias": jnp.asarray(0.0)}
    new, _ = optimizer.update(zeros, optimizer.init(params), params, jnp.asarray(0))
    assert float(new["scale"][0]) == 1.0 and float(new["bias"]) == 2.0
