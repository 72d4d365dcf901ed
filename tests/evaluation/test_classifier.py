"""The steps of both classifiers, against numpy and on any number of devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import parallel, views
from moco_jax.config import BatchNorm
from moco_jax.core import schedules
from moco_jax.core.randomness import INIT, key
from moco_jax.data import loader
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import classifier
from moco_jax.state import Network
from moco_jax.views.recipes import RECIPES
from tests import tiny

RATES = (30.0, 3.0)
CLASSES = 5
ROWS = np.arange(3, 29)  # 26 records: an epoch is one batch of 16 and one of 10, filled up to 16
CONSTANT = lambda step: jnp.ones(())  # noqa: E731


def host_batches(steps):
    made = loader.labelled_batches(
        None, None, seed=0, rows=ROWS, batch_size=16, positions=np.arange(16), first_step=0, last_step=steps, size=0,
        workers=1,
    )  # fmt: skip
    return list(made)


def run(task, data, steps, devices):
    """The state that some steps leave on some devices."""
    over = jax.devices()[:devices]
    mapped, state = parallel.mapped(task.step, over), parallel.born(task.init, over)
    data = jax.tree.map(lambda a: jax.device_put(a, parallel.replicated(over)), data)
    for rows in host_batches(steps):
        state, metrics = mapped(state, jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), rows), data)
    parallel.check_identical(state)
    return parallel.host(state), {k: float(v) for k, v in metrics.items()}


def features_of(batch, data, step):
    return data["features"][batch["ids"][:, 0]]


def linear_task(**changes):
    how = {"momentum": 0.9, "weight_decay": 0.01, "schedule": CONSTANT, "rates": RATES}
    return classifier.linear(features_of, seed=0, width=6, classes=CLASSES, **(how | changes))


def data():
    rng = np.random.default_rng(0)
    return {"features": rng.normal(size=(40, 6)), "labels": rng.integers(0, CLASSES, 40).astype(np.int32)}


def test_linear_equals_sgd_in_numpy_and_counts_no_filling(float64):
    """Cross entropy, its mean over real rows, coupled decay, momentum, a rate for each; the second batch has ten."""
    stored, start = data(), parallel.host(jax.jit(lambda: classifier.start(0, 6, CLASSES))())
    state, metrics = run(linear_task(), stored, 3, 1)
    assert abs(start["kernel"]).std() < 0.02 and not start["bias"].any()
    for r, rate in enumerate(RATES):
        weight, bias = start["kernel"].copy(), start["bias"].copy()
        momentum = [np.zeros_like(weight), np.zeros_like(bias)]
        for batch in host_batches(3):
            ids = batch["ids"][batch["real"], 0]
            x, y = stored["features"][ids], stored["labels"][ids]
            scores = x @ weight + bias
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(y)), y] -= 1
            gradients = [x.T @ p / len(y) + 0.01 * weight, p.mean(0) + 0.01 * bias]
            momentum = [0.9 * m + g for m, g in zip(momentum, gradients, strict=True)]
            weight, bias = weight - rate * momentum[0], bias - rate * momentum[1]
        np.testing.assert_allclose(state.online.params["kernel"][r], weight, rtol=1e-10)
        np.testing.assert_allclose(state.online.params["bias"][r], bias, rtol=1e-10)
    assert np.isfinite(metrics["loss"])
    assert [b["real"].sum() for b in host_batches(3)] == [16, 10, 16]


def test_each_rate_learns_as_if_it_were_alone(float64):
    """A sweep is as many probes, and its columns do not touch."""
    both, stored = run(linear_task(), data(), 4, 1)[0], data()
    for r, rate in enumerate(RATES):
        alone = run(linear_task(rates=(rate,)), stored, 4, 1)[0]
        np.testing.assert_allclose(alone.online.params["kernel"][0], both.online.params["kernel"][r], rtol=1e-12)


@pytest.mark.parametrize("devices", [2, 8])
def test_linear_is_the_same_on_any_number_of_devices(float64, devices):
    """With a last batch of which the last devices hold nothing real."""
    one, several = (run(linear_task(), data(), 4, n)[0] for n in (1, devices))
    gap, where = tiny.distance(several, one)
    assert gap < 1e-10, f"{where}: {gap:.1e}"


@functools.cache
def whole(devices, *, group=4, frozen=False, decay=1.0):
    c = tiny.double(tiny.config(bn=BatchNorm(group)))
    encoder, stored = tiny.small_encoder(c, 3), tiny.images()
    network = Network(**parallel.host(jax.jit(encoder.init)(key(0, 0, INIT))))
    made = views.make(
        RECIPES["supervised"], size=tiny.SIZE, low=0.0, high=255.0, mean=(0.5,) * 3, std=(0.25,) * 3, dtype=np.float64
    )
    params = {"backbone": network.params["backbone"], "classifier": {"kernel": 0.0, "bias": 0.0}}
    task = classifier.whole(
        encoder,
        network,
        classifier.views_of(made, 0),
        seed=0,
        width=4,
        classes=CLASSES,
        rates=classifier.stage_rates(params, body=0.05, head=0.5, decay=decay),
        schedule=schedules.cosine(1.0, epochs=3, steps_per_epoch=2),
        momentum=0.9,
        weight_decay=1e-4,
        frozen_statistics=frozen,
    )
    labels = (np.arange(tiny.RECORDS) % CLASSES).astype(np.int32)
    seed = np.array(7, np.uint32)  # a draw's own
    return network, run(task, {"images": stored, "labels": labels, "seed": seed}, 5, devices)[0]


@pytest.mark.parametrize("devices", [4, 8])
def test_the_whole_network_is_the_same_on_any_number_of_devices(float64, devices):
    """Views, groups of batch norm (over two devices of eight) and filled batches belong to the global batch."""
    gap, where = tiny.distance(whole(devices)[1], whole(1)[1])
    assert gap < 1e-10, f"{where}: {gap:.1e}"


def test_batch_norm_is_as_asked(float64):
    """Trained statistics move with the batches; frozen ones stay bit for bit, and everything else is trained."""
    network, trained = whole(1)
    gap, _ = tiny.distance(trained.online.batch_stats, {"backbone": network.batch_stats["backbone"]})
    assert gap > 0.1
    network, frozen = whole(1, frozen=True)
    assert tiny.distance(frozen.online.batch_stats, {"backbone": network.batch_stats["backbone"]})[0] == 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(frozen.online.params["backbone"]):
        before = functools.reduce(lambda tree, p: tree[p.key], path, network.params["backbone"])
        assert np.abs(leaf - before).max() > 0, path


def test_a_draw_has_views_and_a_start_of_its_own():
    """The seed in the data is as good as the one given, at another value of which nothing is compiled again."""
    made = views.make(
        RECIPES["supervised"], size=4, low=0.0, high=255.0, mean=(0.5,) * 3, std=(0.25,) * 3, dtype=np.dtype("float32")
    )
    batch, stored = {"ids": np.zeros((8, 1), np.int32), "real": np.ones(8, bool)}, {"images": tiny.images()[:1]}

    def seen(given, data):
        of = classifier.views_of(made, given)
        step = lambda state, batch, data: (of(batch, data, state), {})  # noqa: E731
        over = jax.devices()[:1]
        rows = jax.tree.map(lambda a: a[None], batch)
        return np.asarray(parallel.mapped(step, over)(np.int32(3), rows, stored | data)[0])

    draws = {seed: seen(0, {"seed": np.array(seed, np.uint32)}) for seed in (0, 5, 2**32 - 1)}
    for seed, images in draws.items():
        if seed < 2**31:
            np.testing.assert_array_equal(images, seen(seed, {}))
        assert all((images != other).any() for name, other in draws.items() if name != seed)


def test_rates_fall_with_the_stage():
    """The last stage has the body's rate, each below a share of that above, the stem is below the first."""
    backbone = {"conv1": {"kernel": 0}, "layer1_0": {"a": 0}, "layer1_1": {"a": 0}, "layer2_0": {"b": {"c": 0}}}
    params = {"backbone": backbone, "classifier": {"kernel": 0, "bias": 0}}
    rates = classifier.stage_rates(params, body=1.0, head=5.0, decay=0.5)
    assert rates["backbone"] == {
        "conv1": {"kernel": 0.25},
        "layer1_0": {"a": 0.5},
        "layer1_1": {"a": 0.5},
        "layer2_0": {"b": {"c": 1.0}},
    }
    assert rates["classifier"] == {"kernel": 5.0, "bias": 5.0}


def test_an_epoch_holds_every_row_once_whatever_the_batch():
    """Two epochs of 26 records in batches of 16: each record counts once per epoch, in another order."""
    epochs = [host_batches(4)[i : i + 2] for i in (0, 2)]
    seen = [np.concatenate([b["ids"][b["real"], 0] for b in epoch]) for epoch in epochs]
    for ids in seen:
        np.testing.assert_array_equal(np.sort(ids), ROWS)
    assert (seen[0] != seen[1]).any()
    assert all(np.isin(b["ids"], ROWS).all() for epoch in epochs for b in epoch)


def test_views_cut_on_the_host_come_with_their_record():
    """The streamed path: one raw view per row."""
    stored = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 10, 10, 1), np.uint8)
    made = loader.labelled_batches(
        ArraySource(stored), RECIPES["supervised"][0].crop, seed=0, rows=ROWS, batch_size=8, positions=np.arange(8),
        first_step=1, last_step=3, size=4, workers=2,
    )  # fmt: skip
    for batch in made:
        (raw,) = batch["raw"]
        assert raw.shape == (8, 4, 4, 1) and (raw == batch["ids"].reshape(8, 1, 1, 1)).all()


def test_a_case_of_this_file_moves_everything(float64):
    """No tensor of the small network stands still, or equality over devices would say little of it."""
    network, state = whole(1)
    before, after = jax.tree.leaves(network.params["backbone"]), jax.tree.leaves(state.online.params["backbone"])
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(before, after, strict=True))
    assert dataclasses.is_dataclass(state)
