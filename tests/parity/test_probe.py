"""The linear probe and fine-tuning against PyTorch, step by step: the loss and everything that is trained.

The steps, the loader's batches and the plan are the package's own. Expected values are stored, so that no torch is
needed; where torch is installed it is run again and must give the same. `python -m tests.parity.test_probe` prints the
differences of every step.
"""

import functools
import os

if __name__ == "__main__":  # before JAX is imported
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}

from unittest import mock

import jax
import numpy as np
import pytest

from moco_jax import parallel, protocols, views
from moco_jax.checkpoints.torch_names import from_torch, to_torch
from moco_jax.config import BatchNorm, Model
from moco_jax.core import schedules
from moco_jax.data import loader
from moco_jax.evaluation import classifier, fitting, labelled, networks
from moco_jax.models import encoder as encoders
from moco_jax.state import Network
from moco_jax.views.recipes import Crop, ViewRecipe
from tests import tiny
from tests.parity import probe_cases as cases
from tests.parity.differences import Worst
from tests.parity.probe_cases import CASES, STEPS, STEPS_PER_EPOCH, stored
from tests.parity.step_cases import distance

TOLERANCE = 1e-11  # max|a - b| / max|b| per tensor; measured: 2e-15
EPOCHS = -(-STEPS // STEPS_PER_EPOCH)
PROBES = [name for name in CASES if CASES[name].body is None]
EQUAL = [name for name in CASES if name != "finetune_train_short"]
SHORT = [step for step in range(STEPS) if cases.batch(step)[1] < cases.BATCH]


def start():
    """The encoder, with a head of the classifier's shape, and its network at the cases' initial values."""
    model = Model(cases.ARCH, cases.STEM, cases.WIDTH, "linear", cases.CLASSES, "float64")
    made = encoders.from_config(model, BatchNorm(0), channels=3, size=cases.SIZE, dtype=np.dtype("float64"))
    like = jax.eval_shape(made.init, jax.random.key(0))
    shapes = {n: t.shape for n, t in to_torch(jax.tree.map(lambda a: np.zeros(a.shape, np.int8), like)).items()}
    return made, Network(**from_torch(cases.initial(shapes), like))


def images():
    """Centre views of resident images, as `fitting.images` gives them."""
    recipe = (ViewRecipe(Crop((1.0, 1.0)), ()),)
    made = views.make(
        recipe, size=cases.SIZE, low=0.0, high=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, dtype=np.dtype("float64")
    )
    raw = lambda batch, data, *_: (data["images"][batch["ids"][:, 0]],)  # noqa: E731
    return classifier.views_of(made._replace(raw=raw), 0)


@functools.cache
def batches():
    """The loader's own batches: `rows` renumbers the records, so that its order of an epoch is the cases'."""

    def epoch(rows, number):
        made = loader.labelled_batches(
            None, None, seed=0, rows=rows, batch_size=cases.BATCH, positions=np.arange(cases.BATCH), size=0, workers=1,
            first_step=number * STEPS_PER_EPOCH, last_step=(number + 1) * STEPS_PER_EPOCH,
        )  # fmt: skip
        return list(made)

    out = []
    for number in range(EPOCHS):
        drawn = np.concatenate([b["ids"][b["real"], 0] for b in epoch(np.arange(cases.RECORDS), number)])
        rows = np.empty(cases.RECORDS, np.int64)
        rows[drawn] = cases.order(number)
        out += epoch(rows, number)
    return out[:STEPS]


def probes(names, made, network):
    """The shipped task of several probes at once: what `probe.run` makes of an encoder and its views."""
    of, planned = images(), fitting.plan(np.arange(cases.RECORDS), batch_size=cases.BATCH, epochs=EPOCHS)

    def features(batch, data, step):
        encoder = data["encoder"]
        return made.features(encoder.params, encoder.batch_stats, of(batch, data, step))["backbone"]

    return classifier.linear(
        features,
        seed=0,
        width=network.params["head"]["fc"]["kernel"].shape[0],
        classes=cases.CLASSES,
        rates=tuple(CASES[name].head for name in names),
        schedule=schedules.named(
            "step", 1.0, milestones=cases.MILESTONES, epochs=EPOCHS, steps_per_epoch=planned.steps_per_epoch, section=""
        ),
        momentum=cases.MOMENTUM,
        weight_decay=CASES[names[0]].weight_decay,
    )


def finetuning(name, made, network):
    """The shipped task of a fine-tuning, from its section of a config."""
    case = CASES[name]
    fit = protocols.Fit(
        batch_size=cases.BATCH,
        epochs=EPOCHS,
        learning_rate=case.body,
        head_learning_rate=case.head,
        layer_decay=case.decay,
        momentum=cases.MOMENTUM,
        weight_decay=case.weight_decay,
        schedule="step",
        milestones=cases.MILESTONES,
        batch_norm=case.batch_norm,
    )
    networks.check_fit(fit)
    of = fitting.Images(images(), {}, None, None, cases.SIZE, 1)
    seen, pair = tiny.preprocessing(cases.SIZE, 3, computed="float64"), labelled.Pair(None, None, cases.CLASSES, [], "")
    fitter = networks.Fitter(fit, made, 0, of, seen, pair, {}, {}, None)
    planned = networks.plan(fitter, np.arange(cases.RECORDS))
    return networks.task_of(fitter, jax.device_put(network), planned, seed=0, scratch=False)[0]


def tensors(state, place):
    """A state by torch's names; of several probes the one at a place."""
    params = state.online.params
    if "classifier" not in params:
        return to_torch({"params": {"head": {"fc": {k: v[place] for k, v in params.items()}}}})
    params = {"backbone": params["backbone"], "head": {"fc": params["classifier"]}}
    return to_torch({"params": params, "batch_stats": state.online.batch_stats})


@functools.cache  # a compile costs seconds
def run(names, devices):
    """What our steps leave of a case, or of several probes trained at once: [[tensors of a step] of a case]."""
    over, (made, network) = jax.devices()[:devices], start()
    task = probes(names, made, network) if set(names) <= set(PROBES) else finetuning(*names, made, network)
    with mock.patch.object(classifier, "start", return_value=network.params["head"]["fc"]):
        state = parallel.born(task.init, over)
    step = parallel.mapped(task.step, over)
    data = {"images": cases.images().transpose(0, 2, 3, 1), "labels": cases.labels().astype(np.int32)}
    data = jax.device_put(data | {"encoder": network}, parallel.replicated(over))
    out = [[] for _ in names]
    for rows in batches():
        state, metrics = step(state, jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), rows), data)
        parallel.check_identical(state)
        for place, steps in enumerate(out):
            steps.append(tensors(parallel.host(state), place) | {"loss": np.asarray(metrics["loss"])})
    return out


def differences(steps, expected):
    """The largest difference of every kind of tensor after each step: [{kind: (difference, tensor)}]."""
    out = []
    for s, seen in enumerate(steps):
        worst = Worst()
        assert set(seen) == set(expected)
        for n, t in seen.items():
            kind = "statistics" if "running_" in n else n if n == "loss" or n.startswith("fc.") else "backbone"
            worst.see(kind, distance(t, expected[n][s]), n)
        out.append(worst)
    return out


def assert_equal(steps, expected):
    assert len(steps) == STEPS
    for s, worst in enumerate(differences(steps, expected), 1):
        assert {"loss", "fc.weight", "fc.bias"} <= set(worst)
        for difference, tensor in worst.values():
            assert difference <= TOLERANCE, f"step {s}, {tensor}: {difference:.1e}"


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("probe_lr30", 1),
        ("finetune_frozen", 1),
        ("finetune_train", 1),
        ("finetune_train", 2),
        pytest.param("finetune_frozen", 2, marks=pytest.mark.slow),
    ],
)
def test_every_step_equals_torchs(name, devices, float64):
    """Loss and classifier; of fine-tuning also the backbone and the running statistics, trained and frozen."""
    assert_equal(run((name,), devices)[0], stored(name))


def test_probes_of_several_rates_equal_torchs(float64):
    """All rates in one pass, on two devices; the loss in the log is that of the best."""
    expected = [stored(name) for name in PROBES]
    best = np.min([e["loss"] for e in expected], axis=0)
    for steps, of_one in zip(run(tuple(PROBES), 2), expected, strict=True):
        assert_equal(steps, of_one | {"loss": best})


def test_filled_rows_reach_batch_norm_alone(float64):
    """A deviation of `batch_norm="train"`: torch's short batch has statistics of its own, ours those of a filled one.

    Everything is the same before the first of them, and the loss of that step is not. With frozen statistics a filled
    row reaches nothing: there torch's batch is short in the values above.
    """
    steps, torchs = run(("finetune_train",), 1)[0], stored("finetune_train_short")
    found = differences([{n: seen[n] for n in torchs} for seen in steps], torchs)
    losses, weights = ([worst[kind][0] for worst in found] for kind in ("loss", "fc.weight"))
    first = SHORT[0]
    assert max(losses[:first] + weights[:first]) <= TOLERANCE
    assert 1e-4 < losses[first] < 1e-2 and 1e-2 < weights[first] < 0.3  # measured: 4e-4, 8e-2


def test_the_batches_are_the_cases(float64):
    """What the loader gives is what torch was given: the same records in the same order, and as many real ones."""
    for step, rows in enumerate(batches()):
        records, real = cases.batch(step)
        np.testing.assert_array_equal(rows["ids"][:, 0], records)
        np.testing.assert_array_equal(rows["real"], np.arange(cases.BATCH) < real)


@pytest.mark.parametrize("name", CASES)
def test_torch_still_gives_the_stored_values(name):
    """Where torch is installed: what is stored is what it computes."""
    pytest.importorskip("torch")
    from tests.parity import make_probe

    expected = stored(name)
    for s, everything in enumerate(make_probe.run(name)):
        seen = cases.kept(name, everything)
        assert set(seen) == set(expected)
        for n, t in seen.items():
            assert distance(t, expected[n][s]) < 1e-10, f"step {s + 1}, {n}"


def test_a_case_moves_everything():
    """Every tensor moves at every step, but for frozen statistics; batches are short, and milestones passed."""
    assert SHORT == [2, 5, 8] and max(cases.MILESTONES) * STEPS_PER_EPOCH < STEPS
    for name in CASES:
        steps = {n: t.reshape(STEPS, -1) for n, t in stored(name).items()}
        still = {n for n, t in steps.items() if not np.diff(t, axis=0).any(1).all()}
        assert still == {n for n in steps if "running_" in n and CASES[name].batch_norm == "frozen"}, name


def main():
    """The differences of docs/fidelity.md."""
    for name in EQUAL:
        print(name)
        for s, worst in enumerate(differences(run((name,), 1)[0], stored(name)), 1):
            print(f"  step {s:>2}  " + "  ".join(f"{kind} {d:.0e}" for kind, (d, _) in worst.items()), flush=True)


if __name__ == "__main__":
    main()
