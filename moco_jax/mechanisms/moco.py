"""MoCo v1 and v2: a momentum encoder and a queue (arXiv:1911.05722, Algorithm 1; arXiv:2003.04297).

The order is that of the released code: the target moves first, from the online parameters of before this step;
Algorithm 1 moves it last. Since both start equal, the two orders give the same keys.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moco_jax.config import Config, Moco, Queue
from moco_jax.core import axis, chunks, guard, health
from moco_jax.core.ema import ema
from moco_jax.core.losses import Compared, compared, contrast_logits, leave_out, unit
from moco_jax.core.microbatch import Part, microbatched
from moco_jax.core.nce import chance, log_z, nce, remembered
from moco_jax.core.optimizers import Optimizer
from moco_jax.core.queue import NormalisedQueue, behind, enqueue, own_keys, rows_of
from moco_jax.core.queue import start as start_queue
from moco_jax.core.randomness import AUGMENT, CROP, INIT, QUEUE, SHUFFLE, key
from moco_jax.core.shuffle import drawn, shuffled, unshuffled
from moco_jax.state import Contrast, Facts, Mechanism, Network, State

# (step, direction) -> (G,) int32: the original position that fills each shuffled slot, equal on all devices.
Permutation = Callable[[jax.Array, int], jax.Array]
Arrays = Sequence[jax.Array]  # of every direction
Own = tuple[jax.Array, jax.Array]  # ids (n, V) of rows, records (K,) behind the queue: which keys are a row's own


def make(
    encoder: Any,
    views: Any,
    optimizer: Optimizer,
    config: Config,
    facts: Facts,
    *,
    permutation: Permutation | None = None,
    scan: bool = False,
) -> Mechanism:
    """The mechanism of a resolved config, for an `Encoder`, `Views` and optimizer.

    permutation replaces the seeded draw (to replay a recorded one); scan loops over micro-batches instead of unrolling.
    """
    section, queue, queue_size, block, in_parts = _sections(config, scan)
    directions = ((0, 1), (1, 0)) if section.symmetric else ((0, 1),)  # (view of the query, view of the key)

    seeded = partial(drawn, config.seed, purpose=SHUFFLE, total=config.batch_size, block=block)
    permute = permutation or seeded

    guess = len(directions) * (math.log(queue_size + 1) if section.loss == "infonce" else chance(queue_size))

    def init() -> State:
        online = encoder.init(key(config.seed, 0, INIT))
        image = jnp.zeros((1, *facts.view_shape))
        features = jax.eval_shape(encoder.features, online["params"], online["batch_stats"], image)["head"]
        dtype = jnp.promote_types(features.dtype, jnp.float32)
        memory = start_queue(key(config.seed, 0, QUEUE), queue_size, features.shape[-1], dtype)
        if section.loss == "nce":
            none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
            memory = NormalisedQueue(memory.queue, memory.ptr, memory.written, *none)
        return State(
            step=jnp.zeros((), jnp.int32),
            online=Network(**online),
            target=Network(**jax.tree.map(jnp.copy, online)),  # a copy: the step donates both
            optimizer=optimizer.init(online["params"]),
            memory=memory,
        )

    def encode_keys(network: Network, x: jax.Array, step: jax.Array, direction: int) -> tuple[jax.Array, Any]:
        """Keys (G, C) in the original order from raw views x (N, S, S, C), and the target's batch statistics."""
        view = directions[direction][1]
        source = permute(step, direction) if block else None  # (G,)
        # Rows move between batch-norm groups.
        x, positions = (x, axis.here(x.shape[0])) if source is None else shuffled(x, source, block)

        def part(rows: Any) -> tuple[Any, jax.Array]:
            images = views.augment(*rows, key(config.seed, step, AUGMENT), view)
            k, batch_stats = encoder.project(network.params, network.batch_stats, images)
            return batch_stats, unit(k)

        batch_stats, k = in_parts(part, (x, positions))
        k = axis.gather(k)  # (G, C), shuffled
        return lax.stop_gradient(k if source is None else unshuffled(k, source)), batch_stats

    def moved(state: State) -> Network:
        """The target after one momentum step (equation 2)."""
        return Network(ema(state.target.params, state.online.params, section.momentum), state.target.batch_stats)

    def keys_of(target: Network, raw: tuple[jax.Array, ...], step: jax.Array) -> tuple[list[jax.Array], Network]:
        """The keys of every direction, and the target with the batch statistics that they leave."""
        keys = []
        for d, (_, key_view) in enumerate(directions):
            k, batch_stats = encode_keys(target, raw[key_view], step, d)
            target = target.replace(batch_stats=batch_stats)
            keys.append(k)
        return keys, target

    def records_of(state: State, batch: Any) -> jax.Array | None:
        """The record behind each key of the queue (K,); None where the batch does not say."""
        if "queue_ids" not in batch:
            if queue.mask_same_image:
                raise ValueError("queue.mask_same_image needs batch['queue_ids'], as data.loader.batches makes it")
            return None
        return behind(state.memory, batch["queue_ids"], len(directions) * config.batch_size, state.step)

    def queries_of(
        params: Any, raw: tuple[jax.Array, ...], positions: jax.Array, state: State
    ) -> tuple[list[jax.Array], Any]:
        """Queries (n, C) of every direction from raw views (n, S, S, C), and the batch statistics that they leave."""
        batch_stats, queries = state.online.batch_stats, []
        for query_view, _ in directions:
            images = views.augment(raw[query_view], positions, key(config.seed, state.step, AUGMENT), query_view)
            q, batch_stats = encoder.project(params, batch_stats, images)
            queries.append(unit(q))
        return queries, batch_stats

    def logits_of(queries: Arrays, keys: Arrays, own: Own | None, state: State) -> list[jax.Array]:
        """Logits (n, 1 + K) of every direction's queries against their own keys (n, C) and the queue."""
        pairs = zip(queries, keys, strict=True)
        logits = [contrast_logits(q, k, state.memory.queue, section.temperature) for q, k in pairs]
        return [leave_out(x, own_keys(*own)) for x in logits] if queue.mask_same_image and own else logits

    def compare(queries: Arrays, keys: Arrays, own: Own | None, state: State) -> Compared:
        """Every direction's queries against their own keys and the queue: rows (directions * n,)."""
        if not queue.chunk:
            return compared(jnp.concatenate(logits_of(queries, keys, own, state)))
        q, k = jnp.concatenate(queries), jnp.concatenate(keys)
        left_out = (jnp.tile(own[0], (len(queries), 1)), own[1]) if queue.mask_same_image and own else None
        return chunks.compared(q, k, state.memory.queue, section.temperature, chunk=queue.chunk, left_out=left_out)

    def loss_of(queries: Arrays, keys: Arrays, own: Own | None, state: State) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss, summed over directions, and what else is to be known of the comparison."""
        found = compare(queries, keys, own, state)
        loss = len(directions) * jnp.mean(found.info_nce)
        measures = health.similarities(found, section.temperature)
        if section.loss == "nce":
            logits = logits_of(queries, keys, own, state)
            negatives = jnp.concatenate(logits)[:, 1:]  # a key of one's own is no draw from the dictionary
            measures["log_z"] = log_z(state.memory, negatives, facts.records, section.nce_batches)
            loss = jnp.stack([nce(x, measures["log_z"], facts.records) for x in logits]).sum()
        if own is not None:  # old keys of a query's own image, whether left out or not
            counts = chunks.own_count(*own, queue.chunk or queue_size)
            measures["own_keys"] = jnp.mean(counts, dtype=loss.dtype)
        return loss, measures

    def step(state: State, batch: Any, data: Any) -> tuple[State, dict[str, jax.Array]]:
        """One step of MoCo seen from one device: batch {ids (N, V), ...} -> (new state, metrics)."""
        n = batch["ids"].shape[0]
        positions = axis.here(n)
        raw = views.raw(batch, data, positions, key(config.seed, state.step, CROP))  # V of (N, S, S, C)
        keys, target = keys_of(moved(state), raw, state.step)  # (G, C) each
        positives = [axis.mine(k, n) for k in keys]  # (N, C)
        records = records_of(state, batch)  # (K,)

        def part(rows: Any) -> tuple[Any, None]:
            raw, positives, positions, ids = rows
            own = None if records is None else (ids, records)

            def loss_fn(params: Any) -> tuple[jax.Array, Any]:
                queries, batch_stats = queries_of(params, raw, positions, state)
                loss, measures = loss_of(queries, positives, own, state)
                return loss, (batch_stats, measures)

            (loss, (batch_stats, measures)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.online.params)
            return ({"loss": loss, **measures}, gradients, batch_stats), None

        means, _ = in_parts(part, (raw, positives, positions, batch["ids"]))
        own_means = means, target.batch_stats, health.potential(keys[0], n)
        means, target_stats, potential = axis.mean(own_means)  # over devices, once, together
        metrics, gradients, online_stats = means
        ok = guard.finite((metrics["loss"], gradients, online_stats, target_stats))

        params, optimizer_state = optimizer.update(gradients, state.optimizer, state.online.params, state.step)
        memory = enqueue(state.memory, jnp.concatenate(keys[::-1]), state.step, ok=ok)  # symmetric: view 0's keys first
        if section.loss == "nce":
            memory = remembered(memory, metrics["log_z"], section.nce_batches, ok=ok)
        target = moved(state.replace(target=guard.anew(state.target)))  # not kept beside the old one until it is known
        new = Network(params, online_stats), target.replace(batch_stats=target_stats), optimizer_state
        kept = guard.held(ok, new, (state.online, state.target, state.optimizer))
        metrics |= {
            "skipped": 1 - ok.astype(metrics["loss"].dtype),
            "alignment": health.alignment(metrics["positive_similarity"]),
            "uniformity": health.uniformity(potential),
            "effective_rank": health.effective_rank(keys[0]),
            **health.ages("queue", state.memory.written, state.step, state.memory.queue.dtype),
        }
        return State(state.step + 1, *kept, memory), metrics

    def contrast(state: State, batch: Any, data: Any) -> Contrast:
        """The step's forward, with the logits and keys of this device's rows; nothing is updated."""
        n = batch["ids"].shape[0]
        positions = axis.here(n)
        raw = views.raw(batch, data, positions, key(config.seed, state.step, CROP))
        positives = [axis.mine(k, n) for k in keys_of(moved(state), raw, state.step)[0]]
        records = records_of(state, batch)  # (K,)

        def part(rows: Any) -> tuple[None, tuple[jax.Array, jax.Array]]:
            raw, positives, positions, ids = rows
            own = None if records is None else (ids, records)
            queries, _ = queries_of(state.online.params, raw, positions, state)
            logits = logits_of(queries, positives, own, state)
            hits = compare(queries, positives, own, state).hit.reshape(len(directions), -1)
            return None, (jnp.stack(logits, axis=1), hits.T)  # (n, directions, 1 + K), (n, directions)

        _, (logits, hits) = in_parts(part, (raw, positives, positions, batch["ids"]))
        return Contrast(jnp.moveaxis(logits, 1, 0), jnp.stack(positives), hits.T)

    def stored(state: State, batch: Any, step: jax.Array) -> jax.Array:
        """The keys (directions, N, C) that the queue holds of the rows of an earlier step."""
        per_step = config.batch_size * len(directions)
        return rows_of(state.memory, per_step, step, batch["ids"].shape[0])[::-1]  # view 0's come first

    return Mechanism(init, step, contrast, chance=guess, stored=stored)


def _sections(config: Config, scan: bool) -> tuple[Moco, Queue, int, int, Callable[[Part, Any], tuple[Any, Any]]]:
    """Sections moco and queue, K and block of a resolved config, and how rows are split into micro-batches."""
    section, queue, shuffle = config.moco, config.queue, config.shuffle
    if section is None or queue is None or shuffle is None or queue.size is None or shuffle.block is None:
        raise ValueError("moco takes a resolved config with the sections moco, queue and shuffle: see checks.resolve")
    in_parts = partial(microbatched, size=config.train.microbatch_size, scan=scan)
    return section, queue, queue.size, shuffle.block, in_parts
