"""The train state, format version 1, and the facts and functions that a mechanism is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import struct

FORMAT = 1  # of the state in a checkpoint; a change brings a migration and a test that opens the old one


class Network(struct.PyTreeNode):
    """params {backbone, head} and batch_stats {backbone, head} of one encoder."""

    params: Any
    batch_stats: Any


class State(struct.PyTreeNode):
    """Everything that training changes. Replicated on all devices, with no device axis."""

    step: jax.Array  # () int32: steps done, the data position, and what every schedule is a function of
    online: Network
    target: Any  # a Network: the encoder of keys where it is another than the online one (MoCo: its slow average)
    optimizer: Any
    memory: Any  # the mechanism's own: moco keeps its Queue here


class Facts(NamedTuple):
    """What a mechanism may know of the data."""

    records: int  # images in the data set
    view_shape: tuple[int, int, int]  # (S, S, C)
    steps_per_epoch: int


class Contrast(NamedTuple):
    """The forward of a step, row by row, per direction (one, or two when symmetric)."""

    logits: jax.Array  # (directions, N, 1 + K), the positive first; minus infinity: left out
    keys: jax.Array  # (directions, N, C), what the step stores of the rows, where it stores anything
    hits: jax.Array  # (directions, N) bool: a row's own key scores highest (pretext accuracy)


class Mechanism(NamedTuple):
    """A training algorithm: functions, and what others must know of it. The loop runs any (init, step)."""

    init: Callable[[], State]
    step: Callable[[State, Any, Any], tuple[State, dict[str, jax.Array]]]  # (state, batch, data) on one device
    contrast: Callable[[State, Any, Any], Contrast]  # (state, batch, data): the step's own forward
    chance: float  # the loss of a guess: all similarities equal
    # (state, batch of an earlier step, step) -> (directions, N, C): what `memory`, which has `written`, holds of the
    # batch's rows, to be compared with what `contrast` says of them today. None: nothing is stored.
    stored: Callable[[State, Any, jax.Array], jax.Array] | None = None
