"""Record what Facebook's code computes: `python -m tests.parity.against_facebook CLONE FOLDER [CASE ...]`.

CLONE is your own `git clone https://github.com/facebookresearch/moco`; the files are read out of its history (main has
been empty since February 2026), and none of that code is shipped here. FOLDER becomes what
`python -m tests.parity.against_golden FOLDER` reads: the format, and all that was patched, are in
tests/parity/fb_golden/README.md. Needs torch and torchvision. One minute a case on two cores, four for v2_r50.

Run against commit 132aea9 (MoCo, two ranks under DistributedDataParallel) and f736491 (the notebook) with torch
2.13.0: the shipped v1_r18 came out again, logits to 2e-13.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import platform
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
    from torch import nn
except ModuleNotFoundError:
    sys.exit("torch is not installed, and the original is written in it: pip install torch torchvision")

sys.path.insert(0, str(Path(__file__).parents[2]))  # when run by its path

from tests.parity.fb_golden import inputs
from tests.parity.torchvision_cpu import import_torchvision

MAIN, NOTEBOOK = "132aea9da9bb995a411c915c0420be3db62052f3", "f7364915bc4e9161427d7c6bb4f454fa0f171337"
FILES = ((MAIN, "moco/builder.py"), (MAIN, "moco/loader.py"), (MAIN, "main_moco.py"))
FILES += ((NOTEBOOK, "colab/moco_cifar10_demo.ipynb"),)
PACKAGE = "deeplearning.cross_image_ssl.moco"  # where the last commit imports itself from
WHOLE = {"last": 2000, "step1": 200}  # tensors below these sizes are stored whole


class Watch:
    """What the original does not return: permutations, and the logits that its loss receives."""

    def __init__(self) -> None:
        self.permutations: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        self.losses: list[torch.Tensor] = []
        draw, watch = torch.randperm, self

        def randperm(*args: Any, **options: Any) -> torch.Tensor:
            self.permutations.append(draw(*args, **options))
            return self.permutations[-1]  # itself, so that a broadcast into it is seen

        class Loss(nn.CrossEntropyLoss):
            def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
                loss = super().forward(logits, target)
                watch.logits.append(logits.detach().clone())
                watch.losses.append(loss.detach().clone())
                return loss

        torch.randperm = randperm
        torch.nn.CrossEntropyLoss = Loss
        for kind in (torch.Tensor, nn.Module):
            kind.cuda = lambda self, *args, **options: self

    def take(self) -> dict[str, np.ndarray]:
        """Since the last call, stacked: perm, logits, losses."""
        lists = {"perm": self.permutations, "logits": self.logits, "losses": self.losses}
        out = {name: np.stack([t.numpy() for t in tensors]) for name, tensors in lists.items()}
        for tensors in lists.values():
            tensors.clear()
        return out


def source(clone: Path, commit: str, path: str) -> str:
    """A file of the clone's history."""
    done = subprocess.run(["git", "-C", clone, "show", f"{commit}:{path}"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"{clone} has no {path} at {commit[:7]}: {done.stderr.strip()}\ngive a full clone of facebookresearch/moco"
        )
    return done.stdout


def module(name: str, text: str) -> types.ModuleType:
    """A module made of source text, and the packages above it."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        parent = sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        if i > 1:
            setattr(sys.modules[".".join(parts[: i - 1])], parts[i - 1], parent)
    made = sys.modules[name] = types.ModuleType(name)
    if len(parts) > 1:
        setattr(sys.modules[".".join(parts[:-1])], parts[-1], made)
    exec(compile(text, name, "exec"), made.__dict__)
    return made


def start(case: str, model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Give the model the case's initial tensors; its state_dict's names and shapes."""
    spec = [(name, tuple(t.shape)) for name, t in model.state_dict().items()]
    model.load_state_dict({n: torch.from_numpy(v) for n, v in inputs.initial_state(case, spec).items()})
    return spec


def begin(seed: int) -> Watch:
    """Float64, one thread, a seed, and the observers."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return Watch()


def moco_rank(rank: int, clone: Path, case: str, results: Path, port: int) -> None:
    """One rank of MoCo under DistributedDataParallel; writes what it saw to results/rank<r>.npz."""
    c, watch = inputs.CASES[case], begin(1000 + rank)
    torchvision = import_torchvision()
    torch.distributed.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=c["world"])
    builder = module(f"{PACKAGE}.builder", source(clone, MAIN, "moco/builder.py"))
    module(f"{PACKAGE}.loader", source(clone, MAIN, "moco/loader.py"))
    main_moco = module("main_moco", source(clone, MAIN, "main_moco.py"))
    accuracies: list[np.ndarray] = []

    def accuracy(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...]) -> list[torch.Tensor]:
        """Theirs with reshape: its view(-1) raises on current torch."""
        correct = output.topk(max(topk), 1, True, True)[1].t().eq(target.view(1, -1))
        out = [correct[:k].reshape(-1).double().sum(0, keepdim=True) * (100 / len(target)) for k in topk]
        accuracies.append(np.array([float(a) for a in out]))
        return out

    main_moco.accuracy = accuracy
    arch = torchvision.models.__dict__[c["arch"]]
    model = builder.MoCo(arch, c["dim"], c["K"], c["m"], c["T"], c["mlp"])
    spec = start(case, model)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(
        parallel.parameters(), c["base_lr"], momentum=c["momentum"], weight_decay=c["weight_decay"]
    )
    args = argparse.Namespace(
        gpu=None, print_freq=1, lr=c["base_lr"], cos=bool(c["cos_epochs"]), epochs=c["cos_epochs"], schedule=[]
    )
    mine = slice(rank * c["per_rank"], (rank + 1) * c["per_rank"])

    def step(s: int) -> None:
        views = [torch.from_numpy(inputs.images(case, s, v)[mine]) for v in (0, 1)]
        main_moco.adjust_learning_rate(optimizer, s, args)
        main_moco.train([(views, None)], parallel, nn.CrossEntropyLoss(), optimizer, s, args)

    steps = list(recorded(c["steps"], step, model, optimizer, watch))
    for s, accuracy_of_step in zip(steps, accuracies, strict=True):
        s["acc"] = accuracy_of_step
    save_steps(results / f"rank{rank}.npz", spec, steps)
    torch.distributed.destroy_process_group()


def demo(clone: Path, case: str, results: Path) -> None:
    """The notebook's model and training function, in one process."""
    c, watch = inputs.CASES[case], begin(1000)
    resnet = import_torchvision().models.resnet
    cells = json.loads(source(clone, NOTEBOOK, "colab/moco_cifar10_demo.ipynb"))["cells"]
    code = "\n\n".join("".join(cells[i]["source"]).split("# create model")[0] for i in (8, 10, 12))

    class Bar(list):  # stands for tqdm
        def set_description(self, text: str) -> None: ...

    class Loader(list):
        batch_size = c["per_rank"]

    there = module("demo_cells", "import math\nimport torch\nimport torch.nn as nn\nfrom functools import partial\n")
    there.__dict__.update(resnet=resnet, tqdm=Bar)
    exec(compile(code, "moco_cifar10_demo.ipynb", "exec"), there.__dict__)
    model = there.ModelMoCo(c["dim"], c["K"], c["m"], c["T"], c["arch"], c["bn_splits"], c["symmetric"])
    spec = start(case, model)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=c["base_lr"], weight_decay=c["weight_decay"], momentum=c["momentum"]
    )
    there.optimizer = optimizer  # their train() reads the global
    args = argparse.Namespace(lr=c["base_lr"], cos=bool(c["cos_epochs"]), epochs=c["cos_epochs"], schedule=[])

    def step(s: int) -> None:
        views = [torch.from_numpy(inputs.images(case, s, v)) for v in (0, 1)]
        there.train(model, Loader([tuple(views)]), optimizer, s, args)

    save_steps(results / "rank0.npz", spec, list(recorded(c["steps"], step, model, optimizer, watch)))


def recorded(
    count: int, step: Callable[[int], None], model: Any, optimizer: torch.optim.Optimizer, watch: Watch
) -> Iterator[dict[str, np.ndarray]]:
    """Take the steps; what was seen in each, with the whole state after the first and the last."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for s in range(count):
        before = model.queue.clone()
        with contextlib.redirect_stdout(io.StringIO()):
            step(s)
        written = (before != model.queue).any(0)
        out = watch.take() | {
            "lr": np.array(optimizer.param_groups[0]["lr"]),
            "queue_ptr": model.queue_ptr.numpy()[0],
            "queue_new": model.queue[:, written].numpy(),
        }
        if s in (0, count - 1):
            out |= {f"state/{n}": t.numpy().copy() for n, t in model.state_dict().items()}
            buffers = {n: optimizer.state[p]["momentum_buffer"].numpy().copy() for n, p in trained.items()}
            out |= {f"momentum/{n}": b for n, b in buffers.items()}
        yield out


def save_steps(path: Path, spec: Any, steps: list[dict[str, np.ndarray]]) -> None:
    """One rank's steps as arrays named <step>/<what>."""
    arrays = {f"{s}/{name}": value for s, step in enumerate(steps) for name, value in step.items()}
    np.savez(path, spec=json.dumps(spec), **arrays)


def gathered(case: str, results: Path) -> dict[str, Any]:
    """The ranks' records of a case as the stored arrays."""
    c = inputs.CASES[case]
    ranks = [np.load(results / f"rank{r}.npz") for r in range(c["world"])]
    steps, first = range(c["steps"]), ranks[0]

    def over_steps(name: str) -> np.ndarray:
        return np.stack([first[f"{s}/{name}"] for s in steps])

    perm, logits = (
        over_steps("perm"),
        np.stack([np.concatenate([r[f"{s}/logits"] for r in ranks], axis=1) for s in steps]),
    )  # (steps, calls, G), (steps, calls, G, 1 + K)
    losses = np.stack([[r[f"{s}/losses"] for r in ranks] for s in steps])  # (steps, ranks, calls)
    one_call = perm.shape[1] == 1
    spec = [(n, tuple(shape)) for n, shape in json.loads(str(first["spec"]))]
    out: dict[str, Any] = {
        "perm": perm[:, 0] if one_call else perm,
        "logits": logits[:, 0] if one_call else logits,
        "loss": losses.mean(1).sum(-1),
        "loss_rank" if c["code"] == "moco" else "loss_term": losses[..., 0] if c["code"] == "moco" else losses[:, 0],
        **{name: over_steps(name) for name in ("lr", "queue_ptr", "queue_new")},
        "queue_last": first[f"{c['steps'] - 1}/state/queue"],
        "spec": json.dumps(spec),
        "fp_init": fingerprints({n: inputs.init_tensor(case, n, s) for n, s in spec}),
        "fp_images": np.stack(
            [fingerprints({f"images/{s}/{v}": inputs.images(case, s, v) for v in (0, 1)}) for s in steps]
        ),
    }
    if c["code"] == "moco":
        out["acc_rank"] = np.stack([[r[f"{s}/acc"] for r in ranks] for s in steps])
    for when, s in (("step1", 0), ("last", c["steps"] - 1)):
        state, momentum = tensors(first, s, "state/"), tensors(first, s, "momentum/", keep=True)
        out[f"fp_{when}"], out[f"fp_momentum_{when}"] = fingerprints(state), fingerprints(momentum)
        out["momentum_names"] = np.array(list(momentum))
        out |= {f"{when}/{n}": t for n, t in (state | momentum).items() if t.size < WHOLE[when]}
        if c["world"] > 1:
            other = tensors(ranks[1], s, "state/")
            different = [n for n in state if not np.array_equal(other[n], state[n])]
            assert out.setdefault("rank1_names", np.array(different)).tolist() == different
            out[f"fp_rank1_{when}"] = fingerprints({n: other[n] for n in different})
    return out


def tensors(arrays: Any, step: int, kind: str, *, keep: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a kind after a step, by name, with or without the kind before it."""
    prefix = f"{step}/"
    names = [n for n in arrays.files if n.startswith(prefix + kind)]
    return {n.removeprefix(prefix if keep else prefix + kind): arrays[n] for n in names}


def fingerprints(named: dict[str, np.ndarray]) -> np.ndarray:
    """(tensors, 11)."""
    return np.stack([inputs.fingerprint(name, value) for name, value in named.items()])


def record(clone: Path, case: str, folder: Path) -> None:
    """Run a case and write FOLDER/CASE.npz."""
    c, results = inputs.CASES[case], folder / f".{case}"
    results.mkdir(parents=True, exist_ok=True)
    if c["code"] == "demo":
        torch.multiprocessing.spawn(demo_process, (clone, case, results))
    else:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(moco_rank, (clone, case, results, port), nprocs=c["world"])
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    about = {"case": case, "commit": MAIN if c["code"] == "moco" else NOTEBOOK, **versions}
    about |= {"python": platform.python_version(), "dtype": "float64", "backend": "gloo", **c}
    np.savez_compressed(folder / f"{case}.npz", **gathered(case, results), meta=json.dumps(about))
    shutil.rmtree(results)


def demo_process(_: int, clone: Path, case: str, results: Path) -> None:
    """`demo` in a process of its own: it patches torch."""
    demo(clone, case, results)


def main() -> None:
    """Record the cases, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("clone", type=Path, help="of github.com/facebookresearch/moco, with its history and branches")
    parser.add_argument("folder", type=Path, help="to be made")
    parser.add_argument("case", nargs="*", default=list(inputs.CASES), help=f"default all: {', '.join(inputs.CASES)}")
    arguments = parser.parse_args()
    for case in arguments.case:
        if case not in inputs.CASES:
            sys.exit(f"no case {case!r}; there are: {', '.join(inputs.CASES)}")
    for commit, path in FILES:
        source(arguments.clone, commit, path)  # before anything is made
    if import_torchvision() is None:
        sys.exit("torchvision is not installed: its ResNets are what the original trains")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(inputs.__file__), arguments.folder / "inputs.py")
    for case in arguments.case:
        print(f"{case}: {inputs.CASES[case]['steps']} steps", flush=True)
        record(arguments.clone, case, arguments.folder)
        print(f"{arguments.folder}/{case}.npz", flush=True)


if __name__ == "__main__":
    main()
