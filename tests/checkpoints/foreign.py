"""Files as other programs write them: by torch's own modules and optimizer after real steps, in their layouts.

The names, the order of parameters and what stands beside the weights are those of the released MoCo code, of its
CIFAR-10 notebook and of main_lincls.py; the networks are tiny ones, or torchvision's. Needs torch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from tests.parity.torch_reference import Encoder

DIM, QUEUE, ROWS = 8, 24, 4  # features of the head, keys, images of a step


class Contrast(nn.Module):
    """Two encoders, a queue (C, K) and its pointer, under the released code's names; the target is not trained."""

    def __init__(self, make: Callable[[], nn.Module], dim: int = DIM, size: int = QUEUE) -> None:
        super().__init__()
        self.encoder_q, self.encoder_k = make(), make()
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def loss(self, query_view: torch.Tensor, key_view: torch.Tensor, momentum: float = 0.9) -> torch.Tensor:
        """The contrastive loss of a step, after which the keys stand in the queue."""
        with torch.no_grad():
            for k, q in zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True):
                k.mul_(momentum).add_(q, alpha=1 - momentum)
            keys = F.normalize(self.encoder_k(key_view), dim=1)
        q = F.normalize(self.encoder_q(query_view), dim=1)
        logits = torch.cat([(q * keys).sum(1, keepdim=True), q @ self.queue.clone()], 1) / 0.2
        with torch.no_grad():
            rows = (int(self.queue_ptr) + torch.arange(len(keys))) % self.queue.shape[1]
            self.queue[:, rows] = keys.T
            self.queue_ptr[0] = (int(self.queue_ptr) + len(keys)) % self.queue.shape[1]
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


class Trained(NamedTuple):
    """A model that made some steps, and what its program saves."""

    model: nn.Module  # of `content["state_dict"]`
    optimizer: torch.optim.Optimizer
    content: dict[str, Any]

    @property
    def contrast(self) -> Contrast:
        """The model without what wraps it."""
        return getattr(self.model, "module", self.model)


def tiny(
    arch: str = "resnet_tiny", stem: str = "imagenet", head: str = "mlp", channels: int = 3, dim: int = DIM
) -> Callable[[], nn.Module]:
    """A maker of encoders of width 4 under torchvision's names."""
    return lambda: Encoder(arch, stem, 4, head, dim, ROWS, channels)


def of_notebook(encoder: nn.Module) -> nn.Module:
    """An encoder of the CIFAR stem as the notebook holds it: a Sequential, called net, without a max-pool."""
    names = ["conv1", "bn1", None, *[f"layer{i}" for i in range(1, 5)], "pool", "flat", "fc"]
    others = {None: nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(1)}
    holder = nn.Module()
    holder.net = nn.Sequential(*[others.get(n) or getattr(encoder, n) for n in names])
    holder.forward = holder.net.forward
    return holder


def trained(
    make: Callable[[], nn.Module] | None = None,
    *,
    arch: str | None = "resnet_tiny",
    channels: int = 3,
    dim: int = DIM,
    size: int = QUEUE,
    image: int = 16,
    steps: int = 3,
    wrapped: bool = True,
    epoch: int = 3,
) -> Trained:
    """A checkpoint of the released code (`wrapped`: its names begin with module.) or, `arch` None, of the notebook."""
    torch.manual_seed(0)
    contrast = Contrast(make or tiny(channels=channels, dim=dim), dim, size).train()
    model = nn.DataParallel(contrast) if wrapped else contrast  # names as DistributedDataParallel does
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        contrast.loss(torch.randn(ROWS, channels, image, image), torch.randn(ROWS, channels, image, image)).backward()
        optimizer.step()
    content = {"epoch": epoch, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    return Trained(model, optimizer, content if arch is None else {"arch": arch, **content})


def notebook(*, steps: int = 3) -> Trained:
    """A checkpoint of the notebook: a small ResNet-18 with its linear head, no arch, no wrapper."""
    make = tiny("resnet18", "cifar", "linear")
    return trained(lambda: of_notebook(make()), arch=None, wrapped=False, steps=steps)


def by_address(content: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The same with parameters numbered by their address in memory, as torch before 1.6 wrote."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = content["optimizer"]
    groups = [{**g, "params": [id(params[n]) for n in g["params"]]} for g in state["param_groups"]]
    return {
        **content,
        "optimizer": {"state": {id(params[n]): s for n, s in state["state"].items()}, "param_groups": groups},
    }


def linear_classifier(encoder: nn.Module, *, arch: str = "resnet_tiny", classes: int = 5, image: int = 16) -> Trained:
    """A checkpoint of main_lincls.py: a frozen network whose fc was trained, best_acc1 as a tensor beside."""
    torch.manual_seed(1)
    encoder.fc = nn.Linear(encoder.conv1.weight.shape[0] * 4, classes)
    encoder.requires_grad_(False).eval()
    encoder.fc.requires_grad_(True)
    model = nn.DataParallel(encoder)
    optimizer = torch.optim.SGD(encoder.fc.parameters(), 30.0, momentum=0.9)
    F.cross_entropy(encoder(torch.randn(ROWS, 3, image, image)), torch.arange(ROWS)).backward()
    optimizer.step()
    beside = {"best_acc1": torch.tensor(61.5), "optimizer": optimizer.state_dict()}
    return Trained(model, optimizer, {"epoch": 2, "arch": arch, "state_dict": model.state_dict(), **beside})


def save(path: Path, content: Any, *, legacy: bool = False) -> Path:
    """The file, in the format of torch from 1.6 on or in that of before; returns its path."""
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
