"""Settings and inputs of the classifiers' parity cases, in pure numpy, and where their expected values are stored.

A few images in batches that do not divide them: the third batch of every epoch has five images of eight, and the rate
falls to a tenth after six steps, and once more after nine.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.parity.fb_golden import inputs

STORED = Path(__file__).parent / "data" / "probe.npz"
ARCH, STEM, WIDTH = "resnet_tiny", "cifar", 2
CLASSES, RECORDS, SIZE = 5, 21, 9  # SIZE: pixels; odd ones show how strided layers pad
BATCH, STEPS_PER_EPOCH, STEPS = 8, 3, 10
MILESTONES, MOMENTUM = (2, 3), 0.9
Tensors = dict[str, np.ndarray]


class Case(NamedTuple):
    """One training on labels."""

    head: float  # rate of the classifier
    body: float | None = None  # rate of the last stage; None: the backbone stays as it is
    decay: float = 1.0  # the rate of each stage as a share of that above it
    weight_decay: float = 0.0
    batch_norm: str = "frozen"  # frozen or train
    filled: bool = False  # the short batches are encoded as ours are, filled up; else as torch's loader leaves them
    whole: bool = True  # everything that is trained is stored, else the loss and the classifier alone


CASES = {
    "probe_lr30": Case(30.0),
    "probe_lr0.3": Case(0.3),
    "finetune_frozen": Case(0.5, 0.05, 0.7, 1e-4),
    "finetune_train": Case(0.5, 0.05, 0.7, 1e-4, "train", filled=True),
    "finetune_train_short": Case(0.5, 0.05, 0.7, 1e-4, "train", whole=False),
}


def initial(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """A state_dict of the given shapes; the classifier starts as main_lincls.py starts it, from N(0, .01) and 0."""
    given = {n: inputs.init_tensor("probe", n, shape) for n, shape in shapes.items()}
    start = 0.01 * inputs.rng("probe/classifier").standard_normal(shapes["fc.weight"])
    return given | {"fc.weight": start, "fc.bias": np.zeros(shapes["fc.bias"])}


def images() -> np.ndarray:
    """(RECORDS, 3, SIZE, SIZE)."""
    return inputs.rng("probe/images").standard_normal((RECORDS, 3, SIZE, SIZE))


def labels() -> np.ndarray:
    """(RECORDS,) int64."""
    return inputs.rng("probe/labels").integers(0, CLASSES, RECORDS)


def order(epoch: int) -> np.ndarray:
    """The records in the order of an epoch: (RECORDS,) int64."""
    return inputs.rng(f"probe/order/{epoch}").permutation(RECORDS)


def batch(step: int) -> tuple[np.ndarray, int]:
    """Records (BATCH,) of a step, and how many are real: the others are the first of the epoch once more."""
    epoch, at = divmod(step, STEPS_PER_EPOCH)
    rows = np.arange(at * BATCH, (at + 1) * BATCH)
    return order(epoch)[rows % RECORDS], int((rows < RECORDS).sum())


def stored(name: str) -> Tensors:
    """The expected values of a case, as `make_probe` wrote them: loss and tensors by name, (STEPS, ...) each."""
    with np.load(STORED) as file:
        return {k.removeprefix(f"{name}/"): file[k] for k in file.files if k.startswith(f"{name}/")}


def kept(name: str, tensors: Tensors) -> Tensors:
    """What is stored of everything that a step leaves."""
    case = CASES[name]
    whole = case.whole and case.body is not None
    return {n: t for n, t in tensors.items() if whole or n == "loss" or n.startswith("fc.")}
