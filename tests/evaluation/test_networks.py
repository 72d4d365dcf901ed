"""A whole network fitted to labels: what is trained at which rate, and what draws share."""

import dataclasses

import jax
import numpy as np
import pytest

from moco_jax import parallel
from moco_jax.evaluation import classifier, fitting, labelled, networks
from moco_jax.protocols import Fit, Labelled, Views
from tests.evaluation import small

FIT = Fit(batch_size=16, epochs=1, learning_rate=0.2, head_learning_rate=0.5, scratch_learning_rate=0.3)


@pytest.fixture
def bench(monkeypatch):
    """A run with images whose labels can be learned."""
    return small.Bench(monkeypatch)


def fitter_of(bench, fit=FIT):
    loaded = bench.load("runs/a")
    pair = labelled.open_pair(Labelled(), bench.config.data, seed=0)
    how = Views(recipe="supervised_digits", path="resident")
    return loaded, networks.prepare(fit, how, loaded, pair, seed=0, workers=2)


def test_each_draw_has_a_seed_of_its_own_for_everything(bench, monkeypatch):
    """Order, views and start; draws of neighbouring seeds do not meet, and the first is that of the seed itself."""
    loaded, fitter = fitter_of(bench)
    seen = {}

    def batches(images, planned, *, seed, workers):
        return lambda first: seed

    def in_memory(step, init, host_seed, data, planned, own, hear=None):
        state = parallel.host(parallel.born(init, None, own))
        seen[at] = host_seed, int(parallel.host(data["seed"])), state.online.params["classifier"]["kernel"]
        return state

    monkeypatch.setattr(fitting, "batches", batches)
    monkeypatch.setattr(fitting, "in_memory", in_memory)
    for at in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1000, 0)):
        networks.fitted(fitter, loaded.trained.network, np.arange(32), seed=at[0], draw=at[1], scratch=False)
    assert all(on_host == on_device for on_host, on_device, _ in seen.values())
    assert len({on_host for on_host, *_ in seen.values()}) == len({k.tobytes() for *_, k in seen.values()}) == 6
    assert [seen[seed, 0][0] for seed in (0, 1, 1000)] == [0, 1, 1000]
    width = seen[0, 0][2].shape[0]
    np.testing.assert_allclose(seen[1, 0][2], classifier.start(1, width, 3)["kernel"], rtol=1e-6)


def test_draws_compile_nothing_anew(bench):
    """The second draw runs what the first has compiled: the step, the start and the judging."""
    loaded, fitter = fitter_of(bench)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    scores, counts = [], []
    for draw in range(3):
        before = len(compiled)
        scores.append(networks.fitted(fitter, loaded.trained.network, np.arange(32), seed=0, draw=draw, scratch=False))
        counts.append(len(compiled) - before)
    assert counts[0] > 0 and counts[1:] == [0, 0]
    assert (scores[0] != scores[1]).any() and (scores[1] != scores[2]).any()


def given_to_whole(monkeypatch):
    given, whole = [], classifier.whole
    monkeypatch.setattr(classifier, "whole", lambda *args, **named: given.append(named) or whole(*args, **named))
    return given


def task_of(fitter, loaded, scratch):
    planned = networks.plan(fitter, np.arange(32))
    return networks.task_of(fitter, loaded.trained.network, planned, seed=0, scratch=scratch)


@pytest.mark.parametrize(
    ("scratch", "rates"),
    [(False, {"body": 0.2, "head": 0.5, "decay": 0.7}), (True, {"body": 0.3, "head": 0.3, "decay": 1.0})],
)
def test_each_start_has_rates_of_its_own(bench, monkeypatch, scratch, rates):
    """Body, head and decay of an encoder; from scratch one rate for everything, which no decay lowers."""
    loaded, fitter = fitter_of(bench, dataclasses.replace(FIT, layer_decay=0.7))
    asked, tree = [], classifier.stage_rates
    monkeypatch.setattr(classifier, "stage_rates", lambda params, **rates: asked.append(rates) or tree(params, **rates))
    given = given_to_whole(monkeypatch)
    task_of(fitter, loaded, scratch)
    assert asked == [rates]
    leaves = {name: set(jax.tree.leaves(part)) for name, part in given[0]["rates"].items()}
    assert leaves["classifier"] == {rates["head"]}
    assert leaves["backbone"] == {rates["body"]}  # without stages all of it is the last one


@pytest.mark.parametrize("batch_norm", networks.BATCH_NORMS)
def test_statistics_are_frozen_where_that_is_asked(bench, monkeypatch, batch_norm):
    """As momentum and weight decay are what the section says."""
    fit = dataclasses.replace(FIT, batch_norm=batch_norm, momentum=0.8, weight_decay=0.01)
    loaded, fitter = fitter_of(bench, fit)
    given = given_to_whole(monkeypatch)
    task_of(fitter, loaded, False)
    (named,) = given
    assert named["frozen_statistics"] == (batch_norm == "frozen")
    assert (named["momentum"], named["weight_decay"], named["classes"]) == (0.8, 0.01, 3)
