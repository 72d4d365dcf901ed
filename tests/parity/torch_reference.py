"""MoCo v1 and v2 in PyTorch, one process, any device: an independent reference of the published step.

Written from the papers (arXiv:1911.05722, arXiv:2003.04297) and from what the released code was observed to compute. It
needs torch alone, and also serves as PyTorch's side of speed comparisons (`compute` and what follows it).
Batch-norm groups are contiguous rows and stand for the original's GPUs.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = {
    "resnet_tiny": (1, (1, 1, 1)),
    "resnet18": (1, (2, 2, 2, 2)),
    "resnet34": (1, (3, 4, 6, 3)),
    "resnet50": (4, (3, 4, 6, 3)),
}  # expansion (4: bottlenecks), blocks per stage


class GroupBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are those of `size` consecutive rows; running ones are the mean over the groups."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(channels)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.size == len(x):  # one group: torch's own
            return super().forward(x)
        out, means, variances = [], [], []
        for rows in x.split(self.size):
            mean, variance = self.running_mean.clone(), self.running_var.clone()
            out.append(F.batch_norm(rows, mean, variance, self.weight, self.bias, True, self.momentum, self.eps))
            means.append(mean)
            variances.append(variance)
        with torch.no_grad():
            self.running_mean.copy_(torch.stack(means).mean(0))
            self.running_var.copy_(torch.stack(variances).mean(0))
        return torch.cat(out)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or with expansion 4 a bottleneck with its stride on the 3x3."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int, group: int) -> None:
        super().__init__()
        shapes = [(1, 1), (3, stride), (1, 1)] if expansion > 1 else [(3, stride), (3, 1)]
        widths = [channels, *[width] * (len(shapes) - 1), width * expansion]
        for i, (kernel, step) in enumerate(shapes, 1):
            conv = nn.Conv2d(widths[i - 1], widths[i], kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", GroupBatchNorm(widths[i], group))
        self.layers = len(shapes)
        self.downsample = nn.Sequential()
        if stride > 1 or channels != widths[-1]:
            self.downsample.append(nn.Conv2d(channels, widths[-1], 1, stride, bias=False))
            self.downsample.append(GroupBatchNorm(widths[-1], group))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.layers + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.layers else y
        return F.relu(y + self.downsample(x))


class Encoder(nn.Module):
    """ResNet, global average pooling, head: images (N, C, H, W) to (N, dim), under torchvision's names."""

    def __init__(self, arch: str, stem: str, width: int, head: str, dim: int, group: int, channels: int = 3) -> None:
        super().__init__()
        expansion, stages = STAGES[arch]
        size, stride = {"imagenet": (7, 2), "cifar": (3, 1)}[stem]
        self.conv1 = nn.Conv2d(channels, width, size, stride, size // 2, bias=False)
        self.bn1 = GroupBatchNorm(width, group)
        self.pool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        inside = width
        for i, blocks in enumerate(stages):
            stage = nn.Sequential()
            for j in range(blocks):
                stage.append(Block(inside, width * 2**i, 2 if i and not j else 1, expansion, group))
                inside = width * 2**i * expansion
            self.add_module(f"layer{i + 1}", stage)
        self.stages = len(stages)
        last = nn.Linear(inside, dim)
        self.fc = last if head == "linear" else nn.Sequential(nn.Linear(inside, inside), nn.ReLU(), last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """(N, D), pooled."""
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Moco:
    """Momentum contrast with its queue and optimizer; `step` is one step of training."""

    def __init__(
        self,
        online: Encoder,
        target: Encoder,
        *,
        dim: int,
        queue_size: int,
        momentum: float,
        temperature: float,
        symmetric: bool,
        weight_decay: float,
        sgd_momentum: float = 0.9,
        compute: torch.dtype | None = None,
        channels_last: bool = False,
        compiled: bool = False,
        fused: bool = False,
    ) -> None:
        """Encoders on their device; `compute` is autocast's dtype (None: none), `compiled` uses torch.compile.

        `fused` updates all parameters of both encoders in a few kernels.
        """
        target.load_state_dict(online.state_dict())
        self.online, self.target = online.train(), target.train().requires_grad_(False)
        device = online.conv1.weight.device
        self.queue = F.normalize(torch.randn(queue_size, dim, device=device), dim=1)  # (K, C)
        self.pointer = 0
        self.momentum, self.temperature, self.symmetric, self.compute = momentum, temperature, symmetric, compute
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            online.to(memory_format=self.format)
            target.to(memory_format=self.format)
        self.fused = fused
        self.optimizer = torch.optim.SGD(
            online.parameters(), 0.0, sgd_momentum, weight_decay=weight_decay, fused=fused or None
        )
        self.encode = [torch.compile(e) if compiled else e for e in (online, target)]

    def project(self, which: int, x: Tensor) -> Tensor:
        """Unit vectors (N, C) by the online (0) or target (1) encoder, in float32 at least."""
        with torch.autocast(x.device.type, self.compute or torch.bfloat16, enabled=self.compute is not None):
            z = self.encode[which](x.contiguous(memory_format=self.format))
        return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)

    def logits(self, query_view: Tensor, key_view: Tensor, permutation: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, 1 + K) with the positive first, and the keys (N, C); `permutation` shuffles the keys' rows."""
        q = self.project(0, query_view)
        with torch.no_grad():
            k = self.project(1, key_view[permutation])[permutation.argsort()]
        positive, negative = (q * k).sum(1, keepdim=True), q @ self.queue.T
        return torch.cat([positive, negative], 1) / self.temperature, k

    def step(self, views: Sequence[Tensor], permutations: Sequence[Tensor], rate: float) -> dict[str, Any]:
        """One step on two views (N, C, H, W); the target moves first. -> loss, and logits and keys per direction."""
        with torch.no_grad():
            targets, onlines = list(self.target.parameters()), list(self.online.parameters())
            if self.fused:
                torch._foreach_mul_(targets, self.momentum)
                torch._foreach_add_(targets, onlines, alpha=1 - self.momentum)
            else:
                for k, q in zip(targets, onlines, strict=True):
                    k.mul_(self.momentum).add_(q, alpha=1 - self.momentum)
        directions = [(0, 1), (1, 0)] if self.symmetric else [(0, 1)]
        logits, keys = [], []
        for (query, key), permutation in zip(directions, permutations, strict=True):
            of_direction, k = self.logits(views[query], views[key], permutation)
            logits.append(of_direction)
            keys.append(k)
        positive = torch.zeros(len(views[0]), dtype=torch.long, device=views[0].device)
        loss = sum(F.cross_entropy(x, positive) for x in logits)

        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.enqueue(torch.cat(keys[::-1]))  # symmetric: view 0's keys first
        return {"loss": loss.detach(), "logits": [x.detach() for x in logits], "keys": keys}

    def enqueue(self, keys: Tensor) -> None:
        """Keys (B, C) over the oldest rows, around the end."""
        rows = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[rows] = keys
        self.pointer = (self.pointer + len(keys)) % len(self.queue)
