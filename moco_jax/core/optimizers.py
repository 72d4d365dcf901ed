"""SGD as torch writes it, built from optax's parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from moco_jax.core.schedules import Schedule


class Optimizer(NamedTuple):
    """init(params) -> state; update(gradients, state, params, step) -> (new params, new state)."""

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any, jax.Array], tuple[Any, Any]]


def sgd(learning_rate: Schedule, *, momentum: float, weight_decay: float, scales: Any = None) -> Optimizer:
    """buffer = momentum * buffer + (g + weight_decay * p); p -= rate * buffer, for *every* parameter.

    Decay is coupled (before the momentum) and reaches batch norm and biases; the rate multiplies after the momentum, so
    that a changing rate acts at once: torch.optim.SGD as the original calls it. The rate is a function of the state's
    step, hence no optax schedule with a counter of its own. `scales`: factors on the rate, a tree like the parameters
    of numbers or arrays that broadcast to them (torch's parameter groups with a rate each).
    """
    transform = optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))

    def update(gradients: Any, state: Any, params: Any, step: jax.Array) -> tuple[Any, Any]:
        updates, state = transform.update(gradients, state, params)
        rate = learning_rate(step)
        if scales is None:
            return jax.tree.map(lambda p, u: p - rate.astype(u.dtype) * u, params, updates), state
        return jax.tree.map(lambda p, u, s: p - (rate * s).astype(u.dtype) * u, params, updates, scales), state

    return Optimizer(transform.init, update)
