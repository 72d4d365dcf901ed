"""Our step on what Facebook's code computed: `python -m tests.parity.against_golden FOLDER [CASE ...]`, or by its path.

FOLDER holds `inputs.py` and CASE.npz, in the format of tests/parity/fb_golden/README.md, which ships one such case;
`python -m tests.parity.against_facebook` makes further ones. Without CASE, every case whose file is there is run. All
in float64 on one device. Prints the largest difference of every quantity against its tolerance, and exits 1 beyond any.

Logits, losses and queue are compared by their largest absolute difference; every tensor and momentum buffer by its
fingerprint (mean, norm, largest value, 8 projections) relative to its norm; small tensors also whole.

- The shipped mechanism runs as it is: views without operations, the recorded permutations and learning rates.
- The CIFAR notebook's batch-norm groups interleave rows, ours are contiguous: the harness reorders the rows, and puts
  logits and queue back before it compares.
- Known deviation: with DistributedDataParallel the stored running statistics follow rank 0's batches alone, ours are
  the mean over all groups. They are compared after the first step, where the mean of both ranks is known, on the
  entries of the fingerprint that are linear. Nothing else depends on them.
"""

import argparse
import importlib.util
import os
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

if __name__ == "__main__":  # before JAX is imported
    os.environ["JAX_ENABLE_X64"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path.insert(0, str(Path(__file__).parents[2]))  # when run by its path

import jax.numpy as jnp
import numpy as np

from moco_jax.core import schedules
from tests.parity import ours
from tests.parity.differences import Worst, relative
from tests.parity.ours import Tensors

# Inputs are compared by sums over up to 2.4 million values, which BLAS adds up in another order on another CPU: 3e-14
# was seen. Another random stream, the thing to notice, differs by about 1.
TOLERANCE = {"inputs": 1e-13, "pointer": 0.0, "momentum": 1e-10}
DEFAULT = 1e-11  # everything else; an independent program in float64 reaches 2e-13, see the README beside the data
LINEAR = [0, *range(3, 11)]  # mean and projections: the fingerprint's entries that are linear in the tensor
STACKED = ("perm", "logits", "loss", "lr", "queue_ptr", "queue_new")  # one entry a step
CORE = (*STACKED, "queue_last", "spec", "momentum_names", "fp_init", "fp_step1", "fp_last")
CORE += ("fp_momentum_step1", "fp_momentum_last")
WHOLE = {"last": 2000, "step1": 200}  # tensors of fewer numbers are stored whole
NOTEBOOK = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4", "9": "fc"}


class Names:
    """A case's names against torchvision's: the notebook numbers the children of a Sequential."""

    def __init__(self, c: dict[str, Any], spec: list[tuple[str, tuple[int, ...]]]) -> None:
        def plain(name: str) -> str:
            side, *rest = name.split(".")
            if c["code"] == "demo" and rest:
                _, child, *rest = rest
                rest = [NOTEBOOK[child], *rest]
            return ".".join([side, *rest])

        self._plain = {name: plain(name) for name, _ in spec}

    def ours(self, tensors: Tensors) -> Tensors:
        """Theirs under torchvision's names."""
        return {self._plain[name]: value for name, value in tensors.items()}

    def theirs(self, tensors: Tensors) -> Tensors:
        """Ours under the case's names; one that the case lacks is an error."""
        back = {plain: name for name, plain in self._plain.items()}
        return {back[name]: value for name, value in tensors.items()}


class Rows(NamedTuple):
    """How our rows, with contiguous groups, lie in the case's: ours r is theirs order[r]."""

    order: np.ndarray  # (G,)
    group: int  # images that share statistics

    def permutation(self, theirs: np.ndarray) -> np.ndarray:
        """A recorded shuffle (..., G) in our rows."""
        return np.argsort(self.order)[theirs[..., self.order]]

    def note(self, columns: np.ndarray, new: int, pointer: int) -> None:
        """Keep in `columns` (K,), our row of the queue -> their column, where a step put `new` keys."""
        first = (pointer - new) % len(columns)
        columns[first : first + new] = first + np.concatenate([self.order + i for i in range(0, new, len(self.order))])


def load(folder: Path) -> ModuleType:
    """The `inputs.py` of a folder, from its path."""
    spec = importlib.util.spec_from_file_location("golden_inputs", folder / "inputs.py")
    if spec is None or spec.loader is None or not (folder / "inputs.py").is_file():
        sys.exit(f"{folder} holds no inputs.py: give a folder as tests/parity/fb_golden")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(folder: Path, case: str) -> Worst:
    """Every quantity's largest difference over the steps of a case."""
    inputs = load(folder)
    c, golden = inputs.CASES[case], inputs.load(case)
    check(case, c, golden)
    rows = rows_of(c)
    names = Names(c, golden["spec"])
    worst = Worst()
    worst.see("inputs", inputs.check_inputs(case), "numpy")

    state, step = start(c, golden, rows, names.ours(inputs.initial_state(case, golden["spec"])))
    see_tensors(worst, inputs, golden, "init", names.theirs(ours.tensors(state)), c)
    columns = np.arange(c["K"])  # our row of the queue -> their column
    queues = inputs.queues(case, golden)
    for s in range(c["steps"]):
        images = [inputs.images(case, s, view)[rows.order] for view in (0, 1)]
        (state, metrics), contrast = step(state, ours.batch(images), {})
        where = f"step {s + 1}"

        logits = np.empty(contrast.logits.shape[1:])  # (directions, G, 1 + K), in their order
        logits[:, rows.order[:, None], np.concatenate([[0], 1 + columns])[None]] = np.asarray(contrast.logits[0])
        see_step(worst, c, golden, s, logits, float(metrics["loss"]))
        if c["code"] == "moco":  # the notebook's epochs are those of its caller
            worst.see("learning rate", rate_of(c, s) - float(golden["lr"][s]), where)

        rows.note(columns, golden["queue_new"][s].shape[1], int(golden["queue_ptr"][s]))
        queue = np.empty((c["dim"], c["K"]))
        queue[:, columns] = np.asarray(state.memory.queue).T
        worst.see("queue", queue - next(queues), where)
        worst.see("pointer", int(state.memory.ptr) - int(golden["queue_ptr"][s]), where)
        for when in ["step1"] * (s == 0) + ["last"] * (s == c["steps"] - 1):
            tensors = names.theirs(ours.tensors(state)) | {"queue": queue}
            see_tensors(worst, inputs, golden, when, tensors, c)
            see_momentum(worst, inputs, golden, when, names.theirs(ours.momentum(state)))
    worst.see("queue", queue - golden["queue_last"], "at the end")
    return worst


def check(case: str, c: dict[str, Any], golden: dict[str, Any]) -> None:
    """Raises ValueError where a file lacks its core, is not finite, or has another number of steps."""
    if missing := [key for key in CORE if key not in golden]:
        raise ValueError(f"{case}.npz lacks {', '.join(missing)}")
    for key, value in golden.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"{case}.npz: {key} holds values that are not finite")
        if key in STACKED and len(value) != c["steps"]:
            raise ValueError(f"{case}.npz: {key} has {len(value)} steps, the case has {c['steps']}")


def not_compared(c: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    """What of a case is not looked at, and why."""
    out = ["counts of batches (num_batches_tracked): we keep none"]
    if c["world"] == 2:
        out.append("running statistics after the last step, and norm and largest value of those after the first:")
        out.append("  theirs follow rank 0, ours are the mean over ranks")
    if c["world"] > 2:
        out.append(f"running statistics: of {c['world']} ranks, whose mean ours are, the format holds two")
    derived = ["loss_rank", "acc_rank"] if c["code"] == "moco" else ["loss_term"] * bool(c["symmetric"])
    if absent := [key for key in derived if key not in golden]:
        out.append(f"{', '.join(absent)}: not in the file; logits and loss are")
    small = [(w, n) for w, below in WHOLE.items() for n, shape in golden["spec"] if int(np.prod(shape)) < below]
    if absent := [n for when, n in small if f"{when}/{n}" not in golden]:
        out.append(f"{len(absent)} whole tensors: not in the file; their fingerprints are")
    return out


def rows_of(c: dict[str, Any]) -> Rows:
    """Contiguous groups: the ranks of MoCo as they are, the notebook's image i from group i mod splits."""
    total = c["world"] * c["per_rank"]
    groups = c["bn_splits"] if c["code"] == "demo" else c["world"]
    order = np.arange(total)
    if c["code"] == "demo":
        order = order.reshape(-1, groups).T.reshape(-1)
    return Rows(order, total // groups)


def start(c: dict[str, Any], golden: Any, rows: Rows, tensors: Tensors) -> ours.Run:
    """The shipped step with a case's settings, permutations and learning rates."""
    config = ours.config(
        arch=c["arch"],
        stem="cifar" if c["code"] == "demo" else "imagenet",
        width=64,
        head="mlp" if c["code"] == "moco" and c["mlp"] else "linear",
        dim=c["dim"],
        batch_size=len(rows.order),
        group=rows.group,
        queue_size=c["K"],
        momentum=c["m"],
        temperature=c["T"],
        symmetric=bool(c.get("symmetric")),
    )
    return ours.start(
        config,
        size=c["size"],
        permutations=rows.permutation(golden["perm"]).reshape(c["steps"], -1, len(rows.order)),
        rates=golden["lr"],
        weight_decay=c["weight_decay"],
        sgd_momentum=c["momentum"],
        tensors=tensors,
    )


def rate_of(c: dict[str, Any], step: int) -> float:
    """The learning rate of a step by our schedules: a step is an epoch of `cos_epochs`, or the rate is constant."""
    if not c["cos_epochs"]:
        return float(c["base_lr"])
    return float(schedules.cosine(c["base_lr"], epochs=c["cos_epochs"], steps_per_epoch=1)(jnp.asarray(step)))


def see_step(worst: Worst, c: dict[str, Any], golden: Any, s: int, logits: np.ndarray, loss: float) -> None:
    """Logits (directions, G, 1 + K) in their order, and the losses and accuracies that come of them."""
    theirs, where = golden["logits"][s], f"step {s + 1}"
    worst.see("logits", logits - theirs.reshape(logits.shape), where)
    worst.see("loss", loss - golden["loss"][s], where)
    top = logits.max(-1, keepdims=True)
    rows = np.log(np.exp(logits - top).sum(-1)) + top[..., 0] - logits[..., 0]  # (directions, G)
    if "loss_rank" in golden:
        per_rank = rows[0].reshape(c["world"], -1).mean(1)
        worst.see("loss per rank", per_rank - golden["loss_rank"][s].reshape(-1), where)
    if "loss_term" in golden:
        worst.see("loss per direction", rows.mean(1) - golden["loss_term"][s].reshape(-1), where)
    if "acc_rank" in golden:
        better = (logits[0, :, 1:] > logits[0, :, :1]).sum(1)  # (G,), negatives above the positive
        hits = np.stack([better < k for k in (1, 5)], 1).reshape(c["world"], -1, 2)
        worst.see("accuracy per rank", 100 * hits.mean(1) - golden["acc_rank"][s], where)


def see_tensors(worst: Worst, inputs: ModuleType, golden: Any, when: str, tensors: Tensors, c: dict[str, Any]) -> None:
    """Every tensor's fingerprint, and small ones whole, at "init", "step1" or "last"."""
    rank1 = {str(n): i for i, n in enumerate(golden.get("rank1_names", []))}
    stored = [name for name, _ in golden["spec"]]
    assert set(ours.kept(stored)) == set(tensors), sorted(set(ours.kept(stored)) ^ set(tensors))
    for name, theirs in zip(stored, golden[f"fp_{when}"], strict=True):
        if name not in tensors:
            continue  # a count of batches
        mine, statistic = inputs.fingerprint(name, tensors[name]), "running_" in name
        if statistic and c["world"] > 1 and when != "init":
            if when == "step1" and c["world"] == 2:  # both ranks are known, and ours is their mean
                other = golden["fp_rank1_step1"][rank1[name]] if name in rank1 else theirs
                both = (theirs + other) / 2
                worst.see("running statistics", relative(mine - both, theirs[1])[LINEAR], f"{name} after step 1")
            continue
        kind = "initial tensors" if when == "init" else "running statistics" if statistic else "tensors"
        worst.see(kind, relative(mine - theirs, theirs[1]), f"{name} at {when}")
        if (whole := golden.get(f"{when}/{name}")) is not None:
            worst.see(kind, relative(tensors[name] - whole, np.abs(whole).max()), f"{name} at {when}")


def see_momentum(worst: Worst, inputs: ModuleType, golden: Any, when: str, buffers: Tensors) -> None:
    """SGD's buffers at "step1" or "last", in the same way."""
    stored = [str(n) for n in golden["momentum_names"]]
    assert {f"momentum/{n}" for n in buffers} == set(stored)
    for name, theirs in zip(stored, golden[f"fp_momentum_{when}"], strict=True):
        mine, where = buffers[name.removeprefix("momentum/")], f"{name} at {when}"
        worst.see("momentum", relative(inputs.fingerprint(name, mine) - theirs, theirs[1]), where)
        if (whole := golden.get(f"{when}/{name}")) is not None:
            worst.see("momentum", relative(mine - whole, np.abs(whole).max()), where)


def beyond(worst: Worst) -> list[str]:
    """Quantities whose difference is beyond their tolerance."""
    return [q for q, (value, _) in worst.items() if not value <= TOLERANCE.get(q, DEFAULT)]


def main(argv: list[str] | None = None) -> int:
    """Compare the cases of a folder; 0 if all agree, 1 if not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="holds inputs.py and CASE.npz")
    parser.add_argument("case", nargs="*", help="default: every case of inputs.CASES whose file is there")
    arguments = parser.parse_args(argv)
    known = load(arguments.folder).CASES
    cases = arguments.case or [c for c in known if (arguments.folder / f"{c}.npz").is_file()]
    unknown = [c for c in cases if c not in known or not (arguments.folder / f"{c}.npz").is_file()]
    if unknown or not cases:
        lacking = ", ".join(unknown) or "any case"
        sys.exit(f"{arguments.folder} has no results of {lacking}; its inputs.py knows {', '.join(known)}")
    agree = [report(arguments.folder, case) for case in cases]  # all of them, whatever the first says
    return int(not all(agree))


def report(folder: Path, case: str) -> bool:
    """Compare a case and print what was found; whether all agrees."""
    print(case, flush=True)
    try:
        worst = compare(folder, case)
    except (ValueError, KeyError, IndexError, OSError, zipfile.BadZipFile) as error:
        print(f"  CANNOT BE COMPARED: {type(error).__name__}: {error}\n", flush=True)
        return False
    wrong = beyond(worst)
    for quantity, (value, where) in worst.items():
        limit = TOLERANCE.get(quantity, DEFAULT)
        print(f"  {quantity:<20}{value:9.1e}  {'BEYOND' if quantity in wrong else 'within'} {limit:.0e}  ({where})")
    inputs = load(folder)
    for what in not_compared(inputs.CASES[case], inputs.load(case)):
        print(f"  not compared: {what}")
    print(flush=True)
    return not wrong


if __name__ == "__main__":
    sys.exit(main())
