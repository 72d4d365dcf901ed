"""End-to-end contrast: the dictionary is the batch, and gradients reach its keys (arXiv:1911.05722, figure 2a).

A query is matched with the key of its own image among the keys of the global batch: G - 1 negatives, the other images'
keys. With one shared encoder and the symmetric loss this is SimCLR's NT-Xent (arXiv:2002.05709) without the G - 1
negatives that it adds from the query's own view. Keys are shuffled between batch-norm groups, as in the paper.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moco_jax.config import Config, EndToEnd
from moco_jax.core import axis, guard, health
from moco_jax.core.losses import compared, contrast_logits, info_nce, leave_out, unit
from moco_jax.core.optimizers import Optimizer
from moco_jax.core.randomness import AUGMENT, CROP, INIT, SHUFFLE, key
from moco_jax.core.shuffle import drawn, shuffled, unshuffled
from moco_jax.state import Contrast, Facts, Mechanism, Network, State

# (step, direction) -> (G,) int32: the original position that fills each shuffled slot, equal on all devices.
Permutation = Callable[[jax.Array, int], jax.Array]
Networks = tuple[Network, ...]  # the shared one; or those of queries and of keys


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

    permutation replaces the seeded draw (to replay a recorded one). There are no micro-batches to scan: every key is a
    negative of every query, and gets its gradient.
    """
    section, block = _sections(config)
    directions = ((0, 1), (1, 0)) if section.symmetric else ((0, 1),)  # (view of the query, view of the key)

    seeded = partial(drawn, config.seed, purpose=SHUFFLE, total=config.batch_size, block=block)
    permute = permutation or seeded

    def init() -> State:
        online = Network(**encoder.init(key(config.seed, 0, INIT)))
        target = None if section.shared else jax.tree.map(jnp.copy, online)  # a copy: the step donates both
        return State(
            step=jnp.zeros((), jnp.int32),
            online=online,
            target=target,
            optimizer=optimizer.init(params_of(networks_of(online, target))),
            memory=(),
        )

    def networks_of(online: Network, target: Network | None) -> Networks:
        return (online,) if target is None else (online, target)

    def params_of(networks: Networks) -> tuple[Any, ...]:
        return tuple(network.params for network in networks)

    def encode_keys(network: Network, x: jax.Array, step: jax.Array, direction: int) -> tuple[jax.Array, Any]:
        """Keys (G, C) in the original order from raw views x (N, S, S, C), and the batch statistics they leave."""
        view = directions[direction][1]
        source = permute(step, direction) if block else None  # (G,)
        # Rows move between batch-norm groups.
        x, positions = (x, axis.here(x.shape[0])) if source is None else shuffled(x, source, block)
        images = views.augment(x, positions, key(config.seed, step, AUGMENT), view)
        k, batch_stats = encoder.project(network.params, network.batch_stats, images)
        k = axis.gather(unit(k))  # (G, C), shuffled; its gradient goes back to the devices that the keys are from
        return (k if source is None else unshuffled(k, source)), batch_stats

    def logits_of(
        networks: Networks, raw: tuple[jax.Array, ...], step: jax.Array
    ) -> tuple[list[jax.Array], list[jax.Array], Networks]:
        """Logits (N, 1 + G) and keys (G, C) of every direction, and the networks with the batch statistics they leave.

        Column 1 + i is the key of image i of the batch; a query's own is in column 0 and left out there.
        """
        n = raw[0].shape[0]
        positions = axis.here(n)
        own = positions[:, None] == jnp.arange(config.batch_size, dtype=jnp.int32)[None, :]  # (N, G)
        logits, keys = [], []
        for d, (query_view, key_view) in enumerate(directions):
            images = views.augment(raw[query_view], positions, key(config.seed, step, AUGMENT), query_view)
            query, *others = networks
            q, batch_stats = encoder.project(query.params, query.batch_stats, images)
            networks = (query.replace(batch_stats=batch_stats), *others)
            k, batch_stats = encode_keys(networks[-1], raw[key_view], step, d)
            networks = (*networks[:-1], networks[-1].replace(batch_stats=batch_stats))
            logits.append(leave_out(contrast_logits(unit(q), axis.mine(k, n), k, section.temperature), own))
            keys.append(k)
        return logits, keys, networks

    def step(state: State, batch: Any, data: Any) -> tuple[State, dict[str, jax.Array]]:
        """One step seen from one device: batch {ids (N, V), ...} -> (new state, metrics)."""
        n = batch["ids"].shape[0]
        raw = views.raw(batch, data, axis.here(n), key(config.seed, state.step, CROP))  # V of (N, S, S, C)
        networks = networks_of(state.online, state.target)

        def loss_fn(params: tuple[Any, ...]) -> tuple[jax.Array, Any]:
            given = tuple(network.replace(params=p) for network, p in zip(networks, params, strict=True))
            logits, keys, used = logits_of(given, raw, state.step)
            loss = jnp.stack([info_nce(x) for x in logits]).sum()
            batch_stats = tuple(network.batch_stats for network in used)
            measures = health.similarities(compared(jnp.concatenate(logits)), section.temperature)
            return loss, (batch_stats, measures, keys[0])

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (batch_stats, measures, keys)), gradients = value_and_grad(params_of(networks))
        own_means = {"loss": loss, **measures}, gradients, batch_stats, health.potential(keys, n)
        metrics, gradients, batch_stats, potential = axis.mean(own_means)  # over devices, once, together
        ok = guard.finite((metrics["loss"], gradients, batch_stats))

        params, optimizer_state = optimizer.update(gradients, state.optimizer, params_of(networks), state.step)
        new = [Network(p, s) for p, s in zip(params, batch_stats, strict=True)]
        online, target, optimizer_state = guard.held(
            ok,
            (new[0], None if section.shared else new[1], optimizer_state),
            (state.online, state.target, state.optimizer),
        )
        metrics |= {
            "skipped": 1 - ok.astype(metrics["loss"].dtype),
            "alignment": health.alignment(metrics["positive_similarity"]),
            "uniformity": health.uniformity(potential),
            "effective_rank": health.effective_rank(keys),
        }
        return State(state.step + 1, online, target, optimizer_state, memory=()), metrics

    def contrast(state: State, batch: Any, data: Any) -> Contrast:
        """The step's forward, with the logits and keys of this device's rows; nothing is updated."""
        n = batch["ids"].shape[0]
        raw = views.raw(batch, data, axis.here(n), key(config.seed, state.step, CROP))
        logits, keys, _ = logits_of(networks_of(state.online, state.target), raw, state.step)
        hits = [compared(x).hit for x in logits]
        return Contrast(jnp.stack(logits), jnp.stack([axis.mine(k, n) for k in keys]), jnp.stack(hits))

    return Mechanism(init, step, contrast, chance=len(directions) * math.log(config.batch_size))


def _sections(config: Config) -> tuple[EndToEnd, int]:
    """Section end_to_end and the block of a resolved config."""
    if config.end_to_end is None or config.shuffle is None or config.shuffle.block is None:
        raise ValueError("end_to_end takes a resolved config with sections end_to_end and shuffle: see checks.resolve")
    return config.end_to_end, config.shuffle.block
