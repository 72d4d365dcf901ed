"""Facebook's code and ours take over from each other's checkpoints: `python -m tests.parity.resume_facebook CLONE`.

CLONE as for tests.parity.against_facebook. In float64, one rank of the released code, MoCo v2 on ResNet-18 (v1 with
--v1), takes four steps and saves after two, by its own save_checkpoint. From that file ours takes the other two; from
ours, written after two, Facebook's takes them, resumed as its main_moco.py resumes. Both must end where it ended by
itself: every parameter, batch statistic, key, pointer and momentum. A minute on two cores.

Run against commit 132aea9 with torch 2.13.0: ours ends 1e-14 apart (v1: 4e-14), the released code itself 0 apart.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity import against_facebook as facebook  # says so where torch is missing

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import torch
from torch import nn

from moco_jax.checkpoints import moco_state, pytorch, recognise
from moco_jax.checkpoints.torch_names import BATCH_COUNT
from moco_jax.config import Optimizer, Train, Views, to_json
from tests.parity import differences, ours
from tests.parity.fb_golden import inputs

CASE, SIZE, BATCH, DIM, K, STEPS, HALF = "resume", 32, 8, 16, 24, 4, 2
M, T, RATE, MOMENTUM, DECAY = 0.9, 0.2, 0.03, 0.9, 1e-4


def views(step: int) -> list[np.ndarray]:
    """Two views (G, 3, S, S) of a step."""
    return [inputs.rng(f"{CASE}/{step}/{v}").standard_normal((BATCH, 3, SIZE, SIZE)) for v in (0, 1)]


class Released:
    """The released code's model, optimizer and training function, in one rank."""

    def __init__(self, clone: Path, mlp: bool):
        torchvision = facebook.import_torchvision()
        builder = facebook.module(
            f"{facebook.PACKAGE}.builder", facebook.source(clone, facebook.MAIN, "moco/builder.py")
        )
        facebook.module(f"{facebook.PACKAGE}.loader", facebook.source(clone, facebook.MAIN, "moco/loader.py"))
        self.main = facebook.module("main_moco", facebook.source(clone, facebook.MAIN, "main_moco.py"))
        self.main.accuracy = lambda output, target, topk: [torch.zeros(1) for _ in topk]  # its view(-1) raises today
        self.inner = builder.MoCo(torchvision.models.resnet18, DIM, K, M, T, mlp)
        self.model = nn.parallel.DistributedDataParallel(self.inner)
        self.optimizer = torch.optim.SGD(self.model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
        self.args = argparse.Namespace(gpu=None, print_freq=1, lr=RATE, cos=True, epochs=STEPS, schedule=[])

    def resume(self, path: Path) -> int:
        """As main_moco.py's --resume does, strictly; the epoch to go on with."""
        checkpoint = torch.load(path)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        return int(checkpoint["epoch"])

    def epoch(self, number: int) -> None:
        """An epoch of one step."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.main.adjust_learning_rate(self.optimizer, number, self.args)
            batch = [torch.from_numpy(x) for x in views(number)]
            self.main.train([(batch, None)], self.model, nn.CrossEntropyLoss(), self.optimizer, number, self.args)

    def save(self, epochs: int, path: Path) -> None:
        """By its own function, what its own loop gives it."""
        content = {"epoch": epochs, "arch": "resnet18", "state_dict": self.model.state_dict()}
        self.main.save_checkpoint(content | {"optimizer": self.optimizer.state_dict()}, is_best=False, filename=path)

    def ends(self) -> dict[str, np.ndarray]:
        """The state by name, momentum too, without counts of batches."""
        out = {n: t.numpy().copy() for n, t in self.inner.state_dict().items() if not n.endswith(BATCH_COUNT)}
        for name, parameter in self.inner.named_parameters():
            if parameter.requires_grad:
                out[f"momentum/{name}"] = self.optimizer.state[parameter]["momentum_buffer"].numpy().copy()
        return out


def our_config(head: str) -> Any:
    """The same run in our terms."""
    c = ours.config(
        arch="resnet18",
        stem="imagenet",
        width=64,
        head=head,
        dim=DIM,
        batch_size=BATCH,
        group=BATCH,
        queue_size=K,
        momentum=M,
        temperature=T,
        symmetric=False,
    )
    sgd = Optimizer(learning_rate=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    return dataclasses.replace(c, optimizer=sgd, train=Train(epochs=STEPS), views=Views(size=SIZE))


def our_steps(path: Path, head: str, permutations: np.ndarray, rates: np.ndarray) -> dict[str, np.ndarray]:
    """Ours from a checkpoint's epoch to the end."""
    found = recognise.from_file(path)
    assert found.training is not None
    given = {f"encoder_q.{n}": t for n, t in (found.online.backbone | found.online.head).items()}
    given |= {n.replace("encoder_q", "encoder_k"): t for n, t in given.items()} | {"queue": found.training.queue.T}
    run = ours.start(
        our_config(head),
        size=SIZE,
        permutations=permutations[:, None],
        rates=rates,
        weight_decay=DECAY,
        sgd_momentum=MOMENTUM,
        tensors=given,
    )
    state = moco_state.to_state(found, step=found.training.epoch)
    state = jax.tree.map(lambda a, like: jax.numpy.array(a, like.dtype), state, run.state)
    for step in range(found.training.epoch, STEPS):
        (state, _), _ = run.step(state, ours.batch(views(step)), {})
    return ends_of(state)


def ends_of(state: Any) -> dict[str, np.ndarray]:
    """A state of ours as `Released.ends` names it."""
    return ours.tensors(state) | {f"momentum/{n}": t for n, t in ours.momentum(state).items()}


def our_file(source: Path, head: str, path: Path) -> None:
    """Their checkpoint through a state of ours, written as ours."""
    found = recognise.from_file(source)
    assert found.training is not None
    state = moco_state.to_state(found, step=found.training.epoch)
    tree = {
        "step": state.step,
        "online": vars(state.online),
        "target": vars(state.target),
        "optimizer": [None, {"trace": state.optimizer[1].trace}],
        "memory": vars(state.memory),
    }
    config = our_config(head)
    pytorch.write(path, moco_state.to_content(tree, {"config": to_json(config)}, config, steps_per_epoch=1))


def furthest(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest relative difference, and where; the names must be the same."""
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())[:4]
    worst = differences.Worst()
    for name, value in wanted.items():
        value = value.astype(float)
        apart = differences.relative(found[name].astype(float) - value, np.abs(value).max())
        worst.see("all", apart, name)
    return worst["all"]


def main() -> None:
    """Take over in both directions, and say how far the ends are apart."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("clone", type=Path, help="of github.com/facebookresearch/moco, with its history")
    parser.add_argument("--v1", action="store_true", help="a linear head instead of v2's")
    arguments = parser.parse_args()
    head = "linear" if arguments.v1 else "mlp"
    watch = facebook.begin(0)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", f"tcp://localhost:{port}", rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as folder:
        theirs, mine = Path(folder) / "theirs.pth.tar", Path(folder) / "mine.pth.tar"
        released, rates = Released(arguments.clone, not arguments.v1), []
        for epoch in range(STEPS):
            released.epoch(epoch)
            rates.append(released.optimizer.param_groups[0]["lr"])
            if epoch + 1 == HALF:
                released.save(HALF, theirs)
        permutations, wanted = watch.take()["perm"], released.ends()

        there = furthest(our_steps(theirs, head, permutations, np.asarray(rates)), wanted)
        our_file(theirs, head, mine)
        other = Released(arguments.clone, not arguments.v1)
        draws = iter(permutations[HALF:])
        torch.randperm = lambda *_, **__: torch.from_numpy(next(draws).copy())
        for epoch in range(other.resume(mine), STEPS):
            other.epoch(epoch)
        back = furthest(other.ends(), wanted)
    torch.distributed.destroy_process_group()
    for name, (apart, where) in (("theirs, continued by ours", there), ("ours, resumed by theirs", back)):
        print(f"{name}: {len(wanted)} arrays after {STEPS - HALF} more steps, {apart:.1e} apart at most ({where})")
    if max(there[0], back[0]) > 1e-10:
        sys.exit("that is more than rounding")


if __name__ == "__main__":
    main()
