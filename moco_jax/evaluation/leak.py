"""The leak alarm of a run, as an evaluator: do batch-norm statistics tell a query its own key? No labels needed."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax import parallel
from moco_jax.config import Config, Shuffle
from moco_jax.core import axis, shuffle
from moco_jax.core.randomness import RESHUFFLE, SHUFFLE
from moco_jax.loop import Evaluator
from moco_jax.state import Mechanism

IMAGES = 512  # looked at, at least: honest accuracies then differ by 1.5 % (standard deviation), of 128 by 3 %


def leak_alarm(
    config: Config,
    make: Callable[..., Mechanism],
    batches: Callable[..., Iterator[Any]],
    data: Any,
    *,
    block: int,
) -> Evaluator:
    """A counterfactual: the pretext accuracy of the next batches, and of the same ones with keys shuffled anew.

    Keys are encoded once as the run's own step would (in the original order where shuffle.block is 0), once in a fresh
    random order within `block` rows (`checks.leak_block`, above 0). Nothing else differs, so an accuracy that falls was
    owed to the images that a key was encoded among, which its query shares (MoCo, section 3.3). An accuracy that is
    high for an honest reason, such as a short queue, does not fall.

    config: resolved; make(config, permutation=) -> Mechanism; batches(first_step=, last_step=): host batches of
    this process; data: as the step takes it. The evaluator returns {"pretext_own", "pretext_reshuffled", "leak": own
    minus reshuffled}, shares of queries over all directions, and a "warning" where leak is more than
    leak.margin.
    """
    own_block = config.shuffle.block if config.shuffle else 0
    draw = functools.partial(shuffle.drawn, config.seed, total=config.batch_size)

    def permutation(anew: jax.Array, step: jax.Array, direction: int) -> jax.Array:
        """(G,) of a step and direction: the run's own, or another one."""
        own = jnp.arange(config.batch_size, dtype=jnp.int32)
        if own_block:
            own = draw(step, direction, purpose=SHUFFLE, block=own_block)
        return jnp.where(anew, draw(step, direction, purpose=RESHUFFLE, block=block), own)

    def accuracy(state: Any, batch: Any, extra: Any) -> jax.Array:
        data, anew = extra
        permuted = dataclasses.replace(config, shuffle=Shuffle(block))
        mechanism = make(permuted, permutation=functools.partial(permutation, anew))
        hits = mechanism.contrast(state, jax.tree.map(lambda a: a[0], batch), data).hits
        return axis.mean(jnp.mean(hits, dtype=jnp.float32))

    mapped = parallel.map_rows(accuracy)  # one compile for both orders

    def evaluate(state: Any) -> dict[str, float | str]:
        step = int(parallel.host(state.step))
        found = []
        queue: dict[str, Any] | None = None
        for batch in batches(first_step=step, last_step=step + -(-IMAGES // config.batch_size)):
            if queue is None:  # it stays that of `step`, and so do the records behind its keys
                queue = {name: batch[name] for name in ("queue_ids",) if name in batch}
            batch = {**batch, **queue}
            placed = parallel.put_batch(jax.tree.map(lambda a: a[None], batch))
            both = [mapped(state, placed, (data, np.bool_(anew))) for anew in (False, True)]
            found.append([parallel.host(a).item() for a in both])
        own, reshuffled = np.mean(found, axis=0).tolist()
        out: dict[str, float | str] = {"pretext_own": own, "pretext_reshuffled": reshuffled, "leak": own - reshuffled}
        if own - reshuffled > config.leak.margin:
            out["warning"] = _warning(config, own, reshuffled, block)
        return out

    return evaluate


def _warning(config: Config, own: float, reshuffled: float, block: int) -> str:
    now = config.shuffle.block if config.shuffle else 0
    return (
        f"keys leak through batch norm: pretext accuracy falls from {own:.1%} to {reshuffled:.1%} where keys are "
        f"encoded among other images (leak.margin {config.leak.margin:g}), so batch statistics that query and key "
        f"share solve the pretext task, and features may stop improving; shuffle.block is {now} and bn.group_size "
        f"{config.bn.group_size}: begin anew with --config.shuffle.block={block} and another --workdir"
    )
