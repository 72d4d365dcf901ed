"""Learning rates as functions of the step; there is no other counter."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from moco_jax.config import ConfigError, Optimizer, unknown

Schedule = Callable[[jax.Array], jax.Array]  # step () -> rate ()


def cosine(base: float, *, epochs: int, steps_per_epoch: int) -> Schedule:
    """base * (1 + cos(pi * epoch / epochs)) / 2, constant within an epoch, epochs from 0 (MoCo v2's `--cos`)."""

    def rate(step: jax.Array) -> jax.Array:
        left = jnp.asarray(epochs - step // steps_per_epoch, _float())
        # (1 + cos x) / 2 = sin((pi - x) / 2)^2, which does not cancel in float32 where the rate is small.
        return base * jnp.sin(math.pi / 2 * left / epochs) ** 2

    return rate


def stepwise(base: float, *, milestones: tuple[int, ...], steps_per_epoch: int, factor: float = 0.1) -> Schedule:
    """`factor` times the rate from each milestone on, in epochs (MoCo v1: a tenth at 120 and 160 of 200)."""

    def rate(step: jax.Array) -> jax.Array:
        passed = jnp.sum(step // steps_per_epoch >= jnp.asarray(milestones, jnp.int32))
        return base * jnp.asarray(factor, _float()) ** passed

    return rate


SCHEDULES = ("cosine", "step")


def learning_rate(config: Optimizer, *, batch_size: int, epochs: int, steps_per_epoch: int) -> Schedule:
    """The schedule that a config's optimizer section describes."""
    base = config.learning_rate * (batch_size / 256 if config.linear_scaling else 1.0)
    return named(
        config.schedule,
        base,
        milestones=config.milestones,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        section="optimizer.",
    )


def named(
    name: str,
    base: float,
    *,
    milestones: tuple[int, ...],
    epochs: int,
    steps_per_epoch: int,
    section: str,
    factor: float = 0.1,
) -> Schedule:
    """The schedule of a name in SCHEDULES; ConfigError for another, and for milestones that do not go with it."""
    if name == "cosine":
        if milestones:
            raise ConfigError(
                f"{section}milestones {milestones} is read by schedule 'step' only; with 'cosine' leave it ()"
            )
        return cosine(base, epochs=epochs, steps_per_epoch=steps_per_epoch)
    if name == "step":
        if not milestones:
            raise ConfigError(f"{section}schedule 'step' needs {section}milestones, such as (120, 160)")
        return stepwise(base, milestones=milestones, steps_per_epoch=steps_per_epoch, factor=factor)
    raise unknown(f"{section}schedule", name, SCHEDULES)


def _float() -> jnp.dtype:
    return jnp.zeros(()).dtype  # float32, or float64 where the user enabled it
