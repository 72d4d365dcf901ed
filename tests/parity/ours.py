"""The shipped step on given images, permutations and learning rates, and its state by PyTorch's names.

Nothing here is a second implementation: mechanism, encoder, views and optimizer are the package's, and one program on
one device gives the step and, by `contrast`, the logits of its own forward.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax import views
from moco_jax.checkpoints.torch_names import BATCH_COUNT, from_torch, to_torch
from moco_jax.config import BatchNorm, Config, Moco, Model, Queue, Shuffle
from moco_jax.core.axis import AXIS
from moco_jax.core.optimizers import sgd
from moco_jax.mechanisms import MECHANISMS
from moco_jax.models import encoder as encoders
from moco_jax.state import Facts, Mechanism, Network, State
from moco_jax.views.recipes import Crop, ViewRecipe

Tensors = dict[str, np.ndarray]
SIDES = ("encoder_q.", "encoder_k.")  # as the original calls online and target


class Run(NamedTuple):
    """A state and what takes it further."""

    state: State
    step: Callable[[State, Any, Any], Any]  # (state, batch, data) -> (state, metrics), Contrast


def config(
    *,
    arch: str,
    stem: str,
    width: int,
    head: str,
    dim: int,
    batch_size: int,
    group: int,
    queue_size: int,
    momentum: float,
    temperature: float,
    symmetric: bool,
    dtype: str = "float64",
) -> Config:
    """The parts of a config that a step reads; one block over the whole batch."""
    return Config(
        batch_size=batch_size,
        model=Model(arch, stem, width, head, dim, dtype),
        bn=BatchNorm(group),
        moco=Moco(momentum, temperature, symmetric),
        queue=Queue(queue_size),
        shuffle=Shuffle(batch_size),
    )


def start(
    c: Config,
    *,
    size: int,
    permutations: np.ndarray,
    rates: np.ndarray,
    weight_decay: float,
    sgd_momentum: float,
    tensors: Tensors,
) -> Run:
    """A run from given tensors: a state_dict with queue (C, K).

    permutations (steps, directions, G) and rates (steps,) are those of every step.
    """
    dtype = jnp.dtype(c.model.dtype)
    encoder = encoders.from_config(c.model, c.bn, channels=3, size=size, dtype=dtype)
    plain = (ViewRecipe(Crop((1.0, 1.0)), ()),) * 2
    made = views.make(plain, size=size, low=0, high=1, mean=(0.0,) * 3, std=(1.0,) * 3, dtype=dtype)
    permutations, rates = jnp.asarray(permutations, jnp.int32), jnp.asarray(rates, dtype)
    mechanism = MECHANISMS["moco"](
        encoder,
        made,
        sgd(lambda step: rates[step], momentum=sgd_momentum, weight_decay=weight_decay),
        c,
        Facts(records=c.batch_size, view_shape=(size, size, 3), steps_per_epoch=len(rates)),
        permutation=lambda step, direction: permutations[step, direction],
    )
    return Run(_state(mechanism, tensors), _stepper(mechanism))


def _state(mechanism: Mechanism, tensors: Tensors) -> State:
    """The state that a state_dict describes, with an optimizer that has seen nothing."""
    like = jax.eval_shape(mechanism.init)
    networks = [
        Network(**from_torch(side(tensors, name), {"params": n.params, "batch_stats": n.batch_stats}))
        for name, n in zip(SIDES, (like.online, like.target), strict=True)
    ]
    zero, never = np.zeros((), np.int32), np.full(like.memory.written.shape, -1, np.int32)
    state = State(
        step=zero,
        online=networks[0],
        target=networks[1],
        optimizer=jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like.optimizer),
        memory=like.memory.replace(queue=tensors["queue"].T, ptr=zero, written=never),
    )
    return jax.tree.map(lambda a, b: jnp.array(a, b.dtype), state, like)


def side(tensors: Tensors, name: str) -> Tensors:
    """One encoder's part of a state_dict."""
    return {n.removeprefix(name): t for n, t in tensors.items() if n.startswith(name)}


def _stepper(mechanism: Mechanism) -> Any:
    def both(state: State, batch: Any, data: Any) -> Any:
        return mechanism.step(state, batch, data), mechanism.contrast(state, batch, data)

    return jax.pmap(
        both,
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=((None, None), 0),
        devices=jax.devices()[:1],
        donate_argnums=0,
    )


def batch(images: list[np.ndarray]) -> Any:
    """Two views (G, C, H, W) as the batch of one device."""
    ids = np.zeros((1, len(images[0]), 2), np.int32)
    return {"ids": ids, "raw": tuple(x.transpose(0, 2, 3, 1)[None] for x in images)}


def tensors(state: State) -> Tensors:
    """The state as the original's state_dict, without its counts of batches, which we do not keep."""
    out = {"queue": np.asarray(state.memory.queue).T, "queue_ptr": np.asarray(state.memory.ptr).reshape(1)}
    for name, network in zip(SIDES, (state.online, state.target), strict=True):
        mine = to_torch({"params": network.params, "batch_stats": network.batch_stats})
        out |= {name + n: t for n, t in mine.items()}
    return out


def momentum(state: State) -> Tensors:
    """SGD's buffers under the parameters' names."""
    traces = [s.trace for s in jax.tree.leaves(state.optimizer, is_leaf=_is_trace) if _is_trace(s)]
    assert len(traces) == 1
    return {SIDES[0] + n: t for n, t in to_torch({"params": traces[0]}).items()}


def kept(names: list[str]) -> list[str]:
    """Names of a state_dict without its counts of batches."""
    return [n for n in names if not n.endswith(BATCH_COUNT)]


def _is_trace(x: Any) -> bool:
    return hasattr(x, "trace")
