"""The comparison with a folder of results sees every alteration of them: exit status 1, and the quantity named.

The folder is a small one that our own step wrote, so that it agrees; what is under test is the comparison.
"""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from moco_jax.checkpoints.torch_names import to_torch
from moco_jax.config import BatchNorm, Model
from moco_jax.models import encoder
from tests.parity import against_golden, ours

pytestmark = pytest.mark.slow

CASE = """
for _name in ("small", "other"):
    CASES[_name] = dict(_FB, arch="resnet_tiny", per_rank=4, size=12, dim=8, K=16, T=0.2, steps=2)
"""


def spec_of(c):
    """Names and shapes of the state_dict of a case with our tiny ResNet."""
    model = Model(c["arch"], "imagenet", 64, "linear", c["dim"])
    made = encoder.from_config(model, BatchNorm(4), channels=3, size=c["size"], dtype=np.dtype("float64"))
    shapes = to_torch(jax.tree.map(lambda a: np.zeros(a.shape, np.int8), jax.eval_shape(made.init, jax.random.key(0))))
    both = [(side + n, t.shape) for side in ours.SIDES for n, t in shapes.items()]
    return [("queue", (c["dim"], c["K"])), ("queue_ptr", (1,)), *both]


def projected(inputs):
    """The same fingerprints, whose vectors are drawn once for all comparisons."""

    @functools.cache
    def vectors(name, size):
        g = inputs.rng(f"projection/{name}")
        return np.stack([g.standard_normal(size) for _ in range(8)])

    def fingerprint(name, array):
        x = np.asarray(array, np.float64).reshape(-1)
        return np.array([x.mean(), np.sqrt(x @ x), np.abs(x).max(), *(vectors(name, x.size) @ x)])

    return fingerprint


def written(inputs, case, seen, c, spec, given):
    """A file's arrays, from what our steps gave."""
    named = inputs.fingerprint
    states = [ours.tensors(out[0][0]) for out in seen]
    momenta = [{f"momentum/{n}": t for n, t in ours.momentum(out[0][0]).items()} for out in seen]
    logits = np.stack([out[1].logits[0, 0] for out in seen])  # (steps, G, 1 + K)
    losses = np.log(np.exp(logits).sum(-1)) - logits[..., 0]
    better = (logits[..., 1:] > logits[..., :1]).sum(-1)
    hits = np.stack([better < k for k in (1, 5)], -1).reshape(2, 2, 4, 2)
    out = given | {
        "logits": logits,
        "loss": losses.mean(1),
        "loss_rank": losses.reshape(2, 2, 4).mean(-1),
        "acc_rank": 100 * hits.mean(2),
        "queue_ptr": np.array([8, 0]),
        "queue_new": np.stack([states[0]["queue"][:, :8], states[1]["queue"][:, 8:]]),
        "queue_last": states[1]["queue"],
        "spec": json.dumps(spec),
        "meta": "{}",
        "momentum_names": np.array(list(momenta[0])),
        "fp_init": np.stack([named(n, inputs.init_tensor(case, n, shape)) for n, shape in spec]),
        "fp_images": np.stack(
            [[named(f"images/{s}/{v}", inputs.images(case, s, v)) for v in (0, 1)] for s in range(2)]
        ),
        "last/encoder_q.fc.bias": states[1]["encoder_q.fc.bias"],
    }
    for when, state, momentum in zip(("step1", "last"), states, momenta, strict=True):
        out[f"fp_{when}"] = np.stack([named(n, state[n]) for n, _ in spec])
        out[f"fp_momentum_{when}"] = np.stack([named(n, t) for n, t in momentum.items()])
    ranks = [i for i, (n, _) in enumerate(spec) if "running_" in n]  # two ranks about our mean
    apart = np.random.default_rng(0).standard_normal((len(ranks), 11))
    out["rank1_names"] = np.array([spec[i][0] for i in ranks])
    out["fp_rank1_step1"] = out["fp_step1"][ranks] - apart
    out["fp_step1"][ranks] += apart
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder, its arrays by name, and `ours.start` that gives the recorded steps again."""
    folder = tmp_path_factory.mktemp("small")
    text = (Path(against_golden.__file__).parent / "fb_golden" / "inputs.py").read_text()
    (folder / "inputs.py").write_text(text.replace("def rng(key)", CASE + "\n\ndef rng(key)", 1))
    inputs = against_golden.load(folder)
    inputs.fingerprint = projected(inputs)
    c = inputs.CASES["small"]
    with jax.enable_x64(True):
        spec = spec_of(c)
    g = np.random.default_rng(0)
    given = {"perm": np.stack([g.permutation(8) for _ in range(2)]), "lr": np.full(2, c["base_lr"])}
    arrays, replays = {}, {}
    with jax.enable_x64(True):
        for case in ("small", "other"):
            start = inputs.initial_state(case, spec)
            state, step = against_golden.start(c, given, against_golden.rows_of(c), start)
            first, seen = jax.tree.map(np.array, state), []
            for s in range(2):
                out = step(state, ours.batch([inputs.images(case, s, v) for v in (0, 1)]), {})
                seen.append(jax.tree.map(np.array, out))
                state = out[0][0]
            arrays[case] = written(inputs, case, seen, c, spec, given)
            replays[start["queue"].tobytes()] = (first, seen)
    return folder, inputs, arrays, replays


@pytest.fixture
def compared(small, monkeypatch, capsys):
    """(changes of "small", changes of "other") -> exit status and lines of the command; nothing is compiled."""
    folder, inputs, arrays, replays = small

    def start(*_, tensors, **__):
        first, seen = replays[tensors["queue"].tobytes()]
        again = iter(seen)
        return ours.Run(first, lambda *_: next(again))

    monkeypatch.setattr(ours, "start", start)
    monkeypatch.setattr(against_golden, "load", lambda folder: inputs)

    def run(**changes):
        for case, values in arrays.items():
            values = {k: np.array(v) for k, v in values.items()}
            changes.get(case, lambda values: None)(values)
            np.savez(folder / f"{case}.npz", **values)
        status = against_golden.main([str(folder), "small", "other"])
        return status, capsys.readouterr().out.splitlines()

    return run


def put(key, index, change):
    """A change of one entry, relative to the first of its fingerprint's norm where it is one."""

    def alter(values):
        values[key][index] = change(values[key][index])

    return alter


def fingerprint(key, name, entry, share):
    """One entry of a tensor's fingerprint, off by a share of its norm."""

    def alter(values):
        names = values["momentum_names"].tolist()
        row = (names if "momentum" in key else [n for n, _ in json.loads(str(values["spec"]))]).index(name)
        values[key][row, entry] += share * values[key][row, 1]

    return alter


def swapped(values):
    """Two columns that the second step wrote."""
    values["queue_new"][1][:, [0, 1]] = values["queue_new"][1][:, [1, 0]]


WEIGHT, VAR = "encoder_q.layer2.0.conv1.weight", "encoder_k.layer1.0.bn1.running_var"
ALTERED = {
    "logits": (put("logits", (1, 3, 0), lambda v: v + 1e-9), "logits"),
    "loss": (put("loss", 1, lambda v: v + 1e-9), "loss"),
    "loss of a rank": (put("loss_rank", (0, 1), lambda v: v + 1e-9), "loss per rank"),
    "accuracy": (put("acc_rank", (1, 0, 1), lambda v: v - 25), "accuracy per rank"),
    "rate": (put("lr", 1, lambda v: v * 1.001), "learning rate"),
    "pointer": (put("queue_ptr", 1, lambda v: v + 8), "pointer"),
    "queue": (swapped, "queue"),
    "end of the queue": (put("queue_last", (2, 5), lambda v: v + 1e-9), "queue"),
    "image": (put("fp_images", (1, 0, 4), lambda v: v + 1e-6), "inputs"),
    "initial tensor": (fingerprint("fp_init", WEIGHT, 5, 1e-9), "inputs, initial tensors"),
    "target after the first step": (fingerprint("fp_step1", "encoder_k.conv1.weight", 0, 1e-9), "tensors"),
    "weight at the end": (fingerprint("fp_last", WEIGHT, 10, 1e-9), "tensors"),
    "statistics of rank 0": (fingerprint("fp_step1", VAR, 7, 1e-6), "running statistics"),
    "mean of the statistics": (fingerprint("fp_step1", VAR, 0, 1e-6), "running statistics"),
    "first momentum": (fingerprint("fp_momentum_step1", f"momentum/{WEIGHT}", 6, 1e-8), "momentum"),
    "last momentum": (fingerprint("fp_momentum_last", f"momentum/{WEIGHT}", 3, 1e-8), "momentum"),
    "whole tensor": (put("last/encoder_q.fc.bias", 3, lambda v: v + 1e-9), "tensors"),
}


def test_what_is_the_same_agrees(compared):
    """Otherwise the alterations below would argue nothing; what is not compared is said."""
    status, lines = compared()
    assert status == 0, lines
    assert not [line for line in lines if "BEYOND" in line]
    assert sum("whole tensors: not in the file" in line for line in lines) == 2


@pytest.mark.parametrize("what", ALTERED)
def test_an_alteration_is_seen(compared, what):
    """Of the first case of two, so that a later one which agrees does not hide it; no other quantity is blamed."""
    alter, quantity = ALTERED[what]
    status, lines = compared(small=alter)
    assert status == 1
    assert ", ".join(line[2:22].strip() for line in lines if "BEYOND" in line) == quantity


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("logits", (0, 0, 0), lambda v: np.nan), "logits holds values that are not finite"),
        (put("fp_last", (3, 4), lambda v: np.inf), "fp_last holds values that are not finite"),
        (lambda values: values.pop("fp_momentum_last"), "lacks fp_momentum_last"),
        (lambda values: values.update(loss=values["loss"][:1]), "loss has 1 steps, the case has 2"),
        (lambda values: values.pop("fp_images"), "fp_images"),
    ],
)
def test_a_file_that_cannot_be_compared_is_no_agreement(compared, change, words):
    """Status 1, the reason, and the next case is compared all the same."""
    status, lines = compared(small=change)
    assert status == 1
    assert [line for line in lines if "CANNOT BE COMPARED" in line and words in line], lines
    assert "other" in lines and sum("within" in line for line in lines) >= 10


def test_what_is_absent_is_said(compared):
    """Quantities that others imply may be missing; a line says so."""
    status, lines = compared(small=lambda values: [values.pop(k) for k in ("acc_rank", "loss_rank")])
    assert status == 0
    assert sum("loss_rank, acc_rank: not in the file" in line for line in lines) == 1


def test_a_file_that_is_none_is_no_agreement(compared, small):
    """A broken archive, as a download may leave it."""
    folder = small[0]
    compared()
    shutil.copy(folder / "inputs.py", folder / "small.npz")
    assert not against_golden.report(folder, "small")
