"""The shipped step against an independent PyTorch reference, step by step: everything a step leaves.

Expected values are stored, so that no torch is needed; where torch is installed the reference is run again and must
give the same. `python -m tests.parity.test_step [float32] [tiny]` prints the differences of every step.
"""

import functools
import os
import sys

if __name__ == "__main__":  # before JAX is imported
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_X64"] = str(int("float32" not in sys.argv))

import jax
import numpy as np
import pytest

from tests.parity import ours
from tests.parity.differences import Worst
from tests.parity.step_cases import CASES, distance, images, initial, permutations, rates, stored, summary

TOLERANCE = 1e-11  # max|a - b| / max|b| per tensor, in float64; measured: 3e-14
TINY = [name for name, case in CASES.items() if case.whole]
MARKS = {"v1_resnet18": pytest.mark.long, "v2_resnet50": pytest.mark.long}
LARGE = [pytest.param(name, marks=mark) for name, mark in MARKS.items()]


@functools.cache  # a compile costs seconds
def run(name, dtype):
    """What our step leaves after every step of a case, under the reference's names and as it is stored."""
    case, expected = CASES[name], stored(name)
    c = ours.config(
        **{k: getattr(case, k) for k in ("arch", "stem", "width", "head", "dim", "batch_size", "group")},
        **{k: getattr(case, k) for k in ("queue_size", "momentum", "temperature", "symmetric")},
        dtype=dtype,
    )
    shapes = {n: t.shape for n, t in _shapes(c, case.size).items()}
    state, step = ours.start(
        c,
        size=case.size,
        permutations=permutations(name),
        rates=rates(name),
        weight_decay=case.weight_decay,
        sgd_momentum=0.9,
        tensors=initial(name, shapes),
    )
    steps = []
    for s in range(case.steps):
        batch = ours.batch([x.astype(dtype) for x in images(name, s)])
        (state, metrics), contrast = step(state, batch, {})
        seen = ours.tensors(state) | {f"momentum/{n}": t for n, t in ours.momentum(state).items()}
        seen |= {"loss": np.asarray(metrics["loss"]), "logits": np.asarray(contrast.logits[0])}
        assert set(seen) == set(expected)
        steps.append({n: np.asarray(t, np.float64) for n, t in summary(name, seen).items()})
    return steps


def _shapes(c, size):
    """Shapes of one encoder's state_dict."""
    from moco_jax.checkpoints.torch_names import to_torch
    from moco_jax.models import encoder

    made = encoder.from_config(c.model, c.bn, channels=3, size=size, dtype=np.dtype(c.model.dtype))
    return to_torch(jax.tree.map(lambda a: np.zeros(a.shape, np.int8), jax.eval_shape(made.init, jax.random.key(0))))


def differences(name, dtype="float64"):
    """The largest difference of every kind of tensor after each step: [{kind: (difference, tensor)}]."""
    expected, out = stored(name), []
    for s, seen in enumerate(run(name, dtype)):
        worst = Worst()
        for n, t in seen.items():
            worst.see(_kind(n), distance(t, expected[n][s]), n)
        out.append(worst)
    return out


def _kind(name):
    if name.startswith("momentum/"):
        return "momentum"
    side = {"encoder_q": "online", "encoder_k": "target"}.get(name.split(".")[0])
    if side is None:
        return name
    return f"{side} statistics" if "running_" in name else f"{side} params"


@pytest.mark.parametrize("name", [*TINY, *LARGE])
def test_every_step_equals_the_reference(name, float64):
    """Loss, logits, queue, pointer, both parameter trees, both statistics and momentum, after each step."""
    for s, worst in enumerate(differences(name), 1):
        assert len(worst) == 9
        for kind, (difference, tensor) in worst.items():
            assert difference <= (0 if kind == "queue_ptr" else TOLERANCE), f"step {s}, {tensor}: {difference:.1e}"


@pytest.mark.parametrize("name", [*TINY, *LARGE])
def test_the_reference_still_gives_the_stored_values(name):
    """Where torch is installed: what is stored is what the reference computes."""
    pytest.importorskip("torch")
    from tests.parity import make_step

    expected = stored(name)
    for s, seen in enumerate(make_step.run(name)):
        for n, t in summary(name, seen).items():
            assert distance(t, expected[n][s]) < 1e-10, f"step {s + 1}, {n}"


@pytest.mark.parametrize("name", TINY)
def test_float32_leaves_rounding(name):
    """In single precision everything is the same to rounding, which ten steps of a tiny net do not yet blow up."""
    for s, worst in enumerate(differences(name, "float32"), 1):
        for kind, (difference, tensor) in worst.items():
            limit = 1e-4 if kind == "momentum" else 3e-5  # measured: 8e-6 and 3e-6
            assert difference <= (0 if kind == "queue_ptr" else limit), f"step {s}, {tensor}: {difference:.1e}"


def test_a_nan_is_no_agreement(monkeypatch, float64):
    """A step that gives nan anywhere is the largest difference there is, whatever comes before and after it."""
    name = TINY[0]
    steps = [{n: t.copy() for n, t in seen.items()} for seen in run(name, "float64")]
    steps[4]["encoder_k.layer2.0.bn1.bias"][1] = np.nan
    monkeypatch.setattr(sys.modules[__name__], "run", lambda name, dtype: steps)
    wrong = [(s, kind) for s, w in enumerate(differences(name)) for kind, (d, _) in w.items() if not d <= TOLERANCE]
    assert wrong == [(4, "target params")]


def test_a_case_moves_everything():
    """No tensor stands still, groups and shuffles differ, queues wrap inside a batch: a wrong step would show."""
    for name in CASES:
        case, expected = CASES[name], stored(name)
        moves = [n for n, t in expected.items() if n != "queue_ptr" and not (np.ptp(t, axis=0) > 0).any()]
        assert not moves, moves
        assert case.group < case.batch_size and case.queue_size % (case.batch_size * (1 + case.symmetric))
        assert (np.diff(expected["queue_ptr"][:, 0]) < 0).any()
        assert case.size % 2 == 1


def main():
    """The table of docs/fidelity.md."""
    dtype = "float32" if "float32" in sys.argv else "float64"
    for name in TINY if "tiny" in sys.argv else CASES:
        print(name, dtype)
        for s, worst in enumerate(differences(name, dtype), 1):
            print(f"  step {s:>2}  " + "  ".join(f"{kind} {d:.0e}" for kind, (d, _) in worst.items()), flush=True)


if __name__ == "__main__":
    main()
