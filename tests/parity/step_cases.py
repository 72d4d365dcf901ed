"""Settings and inputs of the step's parity cases, in pure numpy, and where their expected values are stored."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.parity.differences import relative
from tests.parity.fb_golden import inputs

GOLDEN = Path(__file__).parent / "golden"
ENTRIES = 24  # of a summary
Tensors = dict[str, np.ndarray]


class Case(NamedTuple):
    """One run of the published step; `whole` stores all tensors of every step, else summaries."""

    arch: str
    stem: str
    width: int
    head: str
    dim: int
    batch_size: int
    group: int
    size: int  # pixels; odd ones show how strided layers pad
    queue_size: int
    temperature: float
    symmetric: bool
    steps: int
    whole: bool
    momentum: float = 0.9  # lower than published, so that a wrong target shows in ten steps
    weight_decay: float = 1e-2  # higher, for the same reason
    rate: float = 0.03


CASES = {
    "v1_tiny": Case("resnet_tiny", "cifar", 4, "linear", 8, 16, 4, 13, 40, 0.07, False, 10, whole=True),
    "v2_tiny_symmetric": Case("resnet_tiny", "imagenet", 4, "mlp", 8, 16, 4, 29, 72, 0.2, True, 10, whole=True),
    "v1_resnet18": Case("resnet18", "cifar", 64, "linear", 128, 16, 8, 15, 40, 0.1, False, 10, whole=False),
    "v2_resnet50": Case("resnet50", "imagenet", 64, "mlp", 128, 8, 4, 63, 20, 0.2, False, 3, whole=False),
}


def initial(name: str, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """A state_dict: encoder_q.* and encoder_k.* of the given shapes, equal to each other, and queue (C, K)."""
    case = CASES[name]
    out = {
        f"{side}.{n}": inputs.init_tensor(name, f"{side}.{n}", shape)
        for side in ("encoder_q", "encoder_k")
        for n, shape in shapes.items()
    }
    return out | {"queue": inputs.init_tensor(name, "queue", (case.dim, case.queue_size))}


def images(name: str, step: int) -> list[np.ndarray]:
    """The two views (G, 3, S, S) of a step: the same pictures under different noise."""
    case = CASES[name]
    shape = (case.batch_size, 3, case.size, case.size)
    base = inputs.rng(f"{name}/images/{step}").standard_normal(shape)
    return [base + inputs.rng(f"{name}/images/{step}/{view}").standard_normal(shape) for view in (0, 1)]


def permutations(name: str) -> np.ndarray:
    """(steps, directions, G) int64."""
    case = CASES[name]
    g = inputs.rng(f"{name}/permutations")
    return np.stack([[g.permutation(case.batch_size) for _ in range(1 + case.symmetric)] for _ in range(case.steps)])


def rates(name: str) -> np.ndarray:
    """(steps,), changing, so that a rate inside the momentum shows."""
    case = CASES[name]
    return case.rate * (1 + np.cos(np.pi * np.arange(case.steps) / case.steps)) / 2


def stored(name: str) -> Tensors:
    """The expected values, as `make_step` wrote them: tensors, logits and loss by name, (steps, ...) each."""
    with np.load(GOLDEN / f"step_{name}.npz") as file:
        return {k: file[k] for k in file.files}


def summary(name: str, tensors: Tensors) -> Tensors:
    """Tensors as they are stored: whole, or mean, norm, largest value and 21 entries at places fixed by the name."""
    if CASES[name].whole:
        return tensors
    return {n: t if t.size <= ENTRIES else _sample(n, t) for n, t in tensors.items()}


def _sample(name: str, tensor: np.ndarray) -> np.ndarray:
    flat = tensor.reshape(-1)
    places = inputs.rng(f"places/{name}").integers(0, flat.size, ENTRIES - 3)
    return np.concatenate([[flat.mean(), np.linalg.norm(flat) / np.sqrt(flat.size), np.abs(flat).max()], flat[places]])


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max|a - b| / max|b| of a tensor, whole or as its summary, whose largest entry is the tensor's."""
    return float(np.abs(relative(np.asarray(ours, np.float64) - theirs, np.abs(theirs).max())).max())
