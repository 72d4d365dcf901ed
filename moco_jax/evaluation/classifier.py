"""Classifiers trained on labels, one step seen from one device: linear on a frozen encoder, or the whole network.

Several linear classifiers, one for each learning rate, are trained on the same batches at once, by `vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

from moco_jax.core import axis
from moco_jax.core.losses import cross_entropy
from moco_jax.core.optimizers import Optimizer, sgd
from moco_jax.core.randomness import AUGMENT, CLASSIFIER, CROP, key
from moco_jax.core.schedules import Schedule
from moco_jax.models.encoder import Encoder
from moco_jax.state import Network, State

Inputs = Callable[[Any, Any, jax.Array], jax.Array]  # (batch, data, step) -> images or features of its rows


class Task(NamedTuple):
    """What the loop runs: `init() -> State` and `step(state, batch, data) -> (state, metrics)` on one device.

    Where there are draws of labels, `init(seed)` gives the start of each, and data["seed"] its views: compiled once.
    """

    init: Callable[..., State]
    step: Callable[[State, Any, Any], tuple[State, dict[str, jax.Array]]]


def start(seed: int | jax.Array, width: int, classes: int) -> dict[str, jax.Array]:
    """Kernel (D, classes) from N(0, .01), bias 0, as main_lincls.py begins."""
    kernel = 0.01 * random.normal(key(seed, 0, CLASSIFIER), (width, classes))  # (D, classes)
    return {"kernel": kernel, "bias": jnp.zeros((classes,), kernel.dtype)}


def scores(classifier: dict[str, jax.Array], features: jax.Array | np.ndarray) -> jax.Array:
    """(n, D) -> (n, classes); products in full float32, which TPUs and GPUs would round."""
    product = jnp.einsum("nd,dk->nk", features, classifier["kernel"], precision=lax.Precision.HIGHEST)
    return product + classifier["bias"][None]


def views_of(views: Any, seed: int) -> Inputs:
    """(batch, data, step) -> augmented images (n, S, S, C) of this device's rows: one view of each.

    data["seed"], a draw's own, stands in the place of `seed` where there is one.
    """

    def images(batch: Any, data: Any, step: jax.Array) -> jax.Array:
        positions, mine = axis.here(batch["ids"].shape[0]), data.get("seed", seed)
        raw = views.raw(batch, data, positions, key(mine, step, CROP))[0]
        return views.augment(raw, positions, key(mine, step, AUGMENT), 0)

    return images


def stored_features(batch: Any, data: Any, step: jax.Array) -> jax.Array:
    """Rows (n, D) of data["features"]."""
    return data["features"][batch["ids"][:, 0]]


def frozen_features(encoder: Encoder, images: Inputs, feature: str) -> Inputs:
    """(batch, data, step) -> features (n, D) of images that are made anew, by the Network data["encoder"]."""

    def features(batch: Any, data: Any, step: jax.Array) -> jax.Array:
        network = data["encoder"]
        found = encoder.features(network.params, network.batch_stats, images(batch, data, step))
        return lax.stop_gradient(found[feature])

    return features


def linear(
    features: Inputs,
    *,
    seed: int,
    width: int,
    classes: int,
    rates: tuple[float, ...],
    schedule: Schedule,
    momentum: float,
    weight_decay: float,
) -> Task:
    """Linear classifiers on fixed features, one for each of R rates, which multiply `schedule`.

    features(batch, data, step) -> (n, D). Labels are data["labels"] (records,). The state's parameters are {"kernel"
    (R, D, classes), "bias" (R, classes)}: all begin alike, and differ by their rate alone.
    """
    count = len(rates)
    by_head = {"kernel": jnp.asarray(rates)[:, None, None], "bias": jnp.asarray(rates)[:, None]}
    optimizer = sgd(schedule, momentum=momentum, weight_decay=weight_decay, scales=by_head)

    def init() -> State:
        one = start(seed, width, classes)
        return _state(jax.tree.map(lambda a: jnp.tile(a[None], (count,) + (1,) * a.ndim), one), {}, optimizer)

    def step(state: State, batch: Any, data: Any) -> tuple[State, dict[str, jax.Array]]:
        x = features(batch, data, state.step)  # (n, D)
        labels, weight = data["labels"][batch["ids"][:, 0]], _weight(batch["real"], x.dtype)

        def loss_fn(classifier: dict[str, jax.Array]) -> jax.Array:
            return jnp.sum(weight * cross_entropy(scores(classifier, x), labels))

        losses, gradients = jax.vmap(jax.value_and_grad(loss_fn))(state.online.params)  # (R,)
        losses, gradients = axis.mean((losses, gradients))
        # With one rate too high its loss may overflow; the others are none the worse, so the best one is watched.
        return _stepped(state, gradients, {}, optimizer), {"loss": jnp.nanmin(losses)}

    return Task(init, step)


def whole(
    encoder: Encoder,
    network: Network,
    images: Inputs,
    *,
    seed: int,
    width: int,
    classes: int,
    rates: Any,
    schedule: Schedule,
    momentum: float,
    weight_decay: float,
    frozen_statistics: bool,
) -> Task:
    """The backbone and a linear classifier trained together, from the parameters and statistics of `network`.

    images(batch, data, step) -> (n, S, S, C). The state's parameters are {"backbone", "classifier"}; `rates`, a tree
    like them, multiplies `schedule`. frozen_statistics: batch norm by the running statistics, which stay as they are
    (its scale and bias are trained); else by the statistics of the batch, in the groups that the encoder was built for.
    """
    module: Any = encoder.module  # networks.check_encoder refuses an encoder without one
    optimizer = sgd(schedule, momentum=momentum, weight_decay=weight_decay, scales=rates)

    def init(draw: int | jax.Array = seed) -> State:
        params = {"backbone": network.params["backbone"], "classifier": start(draw, width, classes)}
        return _state(params, {k: v for k, v in network.batch_stats.items() if k == "backbone"}, optimizer)

    def pooled(params: Any, batch_stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": {"backbone": params["backbone"]}, "batch_stats": batch_stats}
        if frozen_statistics:
            return module.apply(variables, x, train=False), batch_stats
        out, changed = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return out, changed.get("batch_stats", {})

    def step(state: State, batch: Any, data: Any) -> tuple[State, dict[str, jax.Array]]:
        x = images(batch, data, state.step)  # (n, S, S, C)
        labels = data["labels"][batch["ids"][:, 0]]

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            features, batch_stats = pooled(params, state.online.batch_stats, x)  # (n, D)
            losses = cross_entropy(scores(params["classifier"], features), labels)  # (n,)
            return jnp.sum(_weight(batch["real"], losses.dtype) * losses), batch_stats

        (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.online.params)
        loss, gradients, batch_stats = axis.mean((loss, gradients, batch_stats))
        return _stepped(state, gradients, batch_stats, optimizer), {"loss": loss}

    return Task(init, step)


def _weight(real: jax.Array, dtype: Any) -> jax.Array:
    """(n,) so that the mean over devices of a device's weighted sum is the mean over the batch's real rows."""
    mine = real.astype(dtype)
    return mine / axis.mean(jnp.sum(mine))


def _state(params: Any, batch_stats: Any, optimizer: Optimizer) -> State:
    return State(jnp.zeros((), jnp.int32), Network(params, batch_stats), None, optimizer.init(params), ())


def _stepped(state: State, gradients: Any, batch_stats: Any, optimizer: Optimizer) -> State:
    params, optimizer_state = optimizer.update(gradients, state.optimizer, state.online.params, state.step)
    return State(state.step + 1, Network(params, batch_stats), None, optimizer_state, ())


def stage_rates(params: Any, *, body: float, head: float, decay: float) -> Any:
    """The rate of every leaf of {"backbone", "classifier"}: `body` in the last stage, times `decay` for each below.

    Stages are those of the names layer1_0, layer2_0, ...; what has no such name (the stem) is below the first.
    """
    names = {name: stage(name) for name in params["backbone"]}
    top = max(names.values(), default=0)
    backbone = {
        name: jax.tree.map(lambda _, at=at: body * decay ** (top - at), params["backbone"][name])
        for name, at in names.items()
    }
    return {"backbone": backbone, "classifier": jax.tree.map(lambda _: head, params["classifier"])}


def stage(name: str) -> int:
    """The number of the stage that a layer named layer2_0 belongs to; 0 for any other name."""
    number = name.removeprefix("layer").split("_")[0]
    return int(number) if name.startswith("layer") and number.isdigit() else 0
