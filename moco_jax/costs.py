"""The step of a run as it is compiled: what it plans to hold, what it computes, what it moves."""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moco_jax import parallel
from moco_jax.assembly import Parts
from moco_jax.data import sources


class Memory(NamedTuple):
    """Bytes on each device at a step, as the compiler plans them."""

    state: int
    images: int  # resident images
    workspace: int  # everything else: the batch, activations, gradients

    @property
    def peak(self) -> int:
        return sum(self)


def abstract_images(parts: Parts) -> Any:
    """Shape and dtype of what is resident, as the step takes it; empty for a streamed run."""
    if parts.config.data.path != "resident":
        return {}
    image = sources.read(parts.source, 0)
    return parallel.abstract(lambda: {"images": jnp.zeros((len(parts.source), *image.shape), image.dtype)})


def compile_call(parts: Parts, batch: Any, data: Any) -> tuple[Any, float]:
    """The compiled call of a run, to be called as (state, batch, data) with the state donated, and its seconds."""
    began = time.perf_counter()
    state = parallel.abstract(parts.mechanism.init)
    return parallel.lowered(parts.mechanism.step, state, batch, data).compile(), time.perf_counter() - began


def memory_of(call: Any, parts: Parts, data: Any) -> Memory | None:
    """The compiler's plan for each device: what goes in, what comes out beside it, and the workspace between."""
    plan = call.memory_analysis()
    if plan is None:
        return None
    held, images = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (jax.eval_shape(parts.mechanism.init), data)
    )
    peak = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    return Memory(held, images, peak - held - images)


def flops_per_image(parts: Parts, batch: Any, data: Any) -> float | None:
    """XLA's count for one training step, per image of the global batch, before any optimisation: alike everywhere.

    Counted without micro-batches, for one step and with the whole queue, since a loop counts as one turn of it.
    """
    train = dataclasses.replace(parts.config.train, microbatch_size=None, steps_per_call=1)
    queue = parts.config.queue and dataclasses.replace(parts.config.queue, chunk=None)
    mechanism = parts.make(dataclasses.replace(parts.config, train=train, queue=queue))
    one_step = jax.eval_shape(lambda b: jax.tree.map(lambda a: a[:, :1], b), batch)
    lowered = parallel.lowered(mechanism.step, parallel.abstract(mechanism.init), one_step, data)
    try:
        flops = (lowered.cost_analysis() or {}).get("flops")
    except NotImplementedError:  # a backend without the analysis
        return None
    return None if flops is None else flops * parallel.device_count() / parts.config.batch_size


def bytes_per_image(call: Any, batch_size: int) -> float | None:
    """XLA's count of bytes that the compiled call reads and writes, per image of the global batch."""
    cost = call.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost  # of several programs, which there are not
    touched = cost.get("bytes accessed")
    return None if touched is None else touched * parallel.device_count() / batch_size
