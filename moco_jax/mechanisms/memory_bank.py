"""A memory bank: one stored feature for every image (arXiv:1911.05722, figure 2b; Wu and others, arXiv:1805.01978).

A query is matched with the stored feature of its own image among K drawn from the bank. Only what a batch encodes is
stored: the feature of a seen image moves by momentum towards the query, so that others are as old as their last visit.
There is no key encoder, one view, and no shuffle: a stored feature comes from a batch of the past.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moco_jax.config import Config, MemoryBank
from moco_jax.core import axis, guard, health
from moco_jax.core.bank import drawn, update
from moco_jax.core.bank import start as start_bank
from moco_jax.core.losses import compared, contrast_logits, info_nce, unit
from moco_jax.core.microbatch import microbatched
from moco_jax.core.nce import chance, log_z, nce, remembered
from moco_jax.core.optimizers import Optimizer
from moco_jax.core.randomness import AUGMENT, BANK, CROP, INIT, NEGATIVES, key
from moco_jax.state import Contrast, Facts, Mechanism, Network, State


def make(
    encoder: Any, views: Any, optimizer: Optimizer, config: Config, facts: Facts, *, scan: bool = False
) -> Mechanism:
    """The mechanism of a resolved config, for an `Encoder`, `Views` and optimizer, over `facts.records` images.

    scan loops over micro-batches instead of unrolling.
    """
    section, size = _section(config)
    in_parts = partial(microbatched, size=config.train.microbatch_size, scan=scan)
    guess = math.log(size + 1) if section.loss == "infonce" else chance(size)

    def init() -> State:
        online = encoder.init(key(config.seed, 0, INIT))
        image = jnp.zeros((1, *facts.view_shape))
        features = jax.eval_shape(encoder.features, online["params"], online["batch_stats"], image)["head"]
        dtype = jnp.dtype(section.dtype)
        if section.dtype == "float32":  # or wider, where features are
            dtype = jnp.promote_types(features.dtype, dtype)
        return State(
            step=jnp.zeros((), jnp.int32),
            online=Network(**online),
            target=None,
            optimizer=optimizer.init(online["params"]),
            memory=start_bank(key(config.seed, 0, BANK), facts.records, features.shape[-1], dtype),
        )

    def logits_of(params: Any, state: State, rows: Any) -> tuple[jax.Array, jax.Array, Any]:
        """Logits (n, 1 + K) and queries (n, C) of rows (raw view, positions, ids (n, V)), and batch statistics.

        The key is the stored feature of the record behind view 1: the same image, unless data.pairs says otherwise.
        """
        raw, positions, ids = rows
        images = views.augment(raw, positions, key(config.seed, state.step, AUGMENT), 0)
        q, batch_stats = encoder.project(params, state.online.batch_stats, images)
        q = unit(q)
        noise = drawn(key(config.seed, state.step, NEGATIVES), positions, ids[:, 1], size, facts.records)
        keys, negatives = (state.memory.bank[i].astype(q.dtype) for i in (ids[:, 1], noise))  # (n, C), (n, K, C)
        return contrast_logits(q, keys, negatives, section.temperature), q, batch_stats

    def loss_of(logits: jax.Array, state: State) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss, and what NCE has to remember."""
        if section.loss == "infonce":
            return info_nce(logits), {}
        z = log_z(state.memory, logits, facts.records, section.nce_batches)
        return nce(logits, z, facts.records), {"log_z": z}

    def step(state: State, batch: Any, data: Any) -> tuple[State, dict[str, jax.Array]]:
        """One step seen from one device: batch {ids (N, V), ...} -> (new state, metrics)."""
        ids = _ids(batch)
        n = ids.shape[0]
        positions = axis.here(n)
        raw = views.raw(batch, data, positions, key(config.seed, state.step, CROP))[0]  # (N, S, S, C)

        def part(rows: Any) -> tuple[Any, jax.Array]:
            def loss_fn(params: Any) -> tuple[jax.Array, Any]:
                logits, q, batch_stats = logits_of(params, state, rows)
                loss, measures = loss_of(logits, state)
                return loss, (batch_stats, measures | health.similarities(compared(logits), section.temperature), q)

            value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, (batch_stats, measures, q)), gradients = value_and_grad(state.online.params)
            return ({"loss": loss, **measures}, gradients, batch_stats), q

        means, q = in_parts(part, (raw, positions, ids))
        features = axis.gather(q)  # (G, C)
        means, potential = axis.mean((means, health.potential(features, n)))  # over devices, once, together
        metrics, gradients, batch_stats = means
        ok = guard.finite((metrics["loss"], gradients, batch_stats))

        params, optimizer_state = optimizer.update(gradients, state.optimizer, state.online.params, state.step)
        new = Network(params, batch_stats), optimizer_state
        online, optimizer_state = guard.held(ok, new, (state.online, state.optimizer))
        memory = update(state.memory, ids[:, 0], features, section.momentum, state.step, ok=ok)
        if section.loss == "nce":
            memory = remembered(memory, metrics["log_z"], section.nce_batches, ok=ok)
        metrics |= {
            "skipped": 1 - ok.astype(metrics["loss"].dtype),
            "alignment": health.alignment(metrics["positive_similarity"]),
            "uniformity": health.uniformity(potential),
            "effective_rank": health.effective_rank(features),
            **health.ages("bank", state.memory.written, state.step, q.dtype),
        }
        return State(state.step + 1, online, None, optimizer_state, memory), metrics

    def contrast(state: State, batch: Any, data: Any) -> Contrast:
        """The step's forward: logits (1, N, 1 + K) and, as keys, the features (1, N, C) that it would store."""
        ids = _ids(batch)
        positions = axis.here(ids.shape[0])
        raw = views.raw(batch, data, positions, key(config.seed, state.step, CROP))[0]

        def part(rows: Any) -> tuple[None, tuple[jax.Array, jax.Array]]:
            logits, q, _ = logits_of(state.online.params, state, rows)
            return None, (logits, q)

        _, (logits, q) = in_parts(part, (raw, positions, ids))
        return Contrast(logits[None], q[None], compared(logits).hit[None])

    def stored(state: State, batch: Any, step: jax.Array) -> jax.Array:
        """What the bank holds of the rows of a step, which is their last: (1, N, C)."""
        return state.memory.bank[_ids(batch)[:, 0]][None]

    return Mechanism(init, step, contrast, chance=guess, stored=stored)


def _section(config: Config) -> tuple[MemoryBank, int]:
    """Section memory_bank and K of a resolved config."""
    if config.memory_bank is None or config.memory_bank.size is None:
        raise ValueError("memory_bank takes a resolved config with that section: see checks.resolve")
    return config.memory_bank, config.memory_bank.size


def _ids(batch: Any) -> jax.Array:
    """The record behind each view (N, V): where in the bank a row is."""
    if "ids" not in batch:
        raise ValueError("memory_bank needs batch['ids'], the record behind each view, as data.loader.batches makes it")
    ids: jax.Array = batch["ids"]
    return ids
