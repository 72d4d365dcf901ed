"""PyTorch's side: our reference step on the same card, in the variants that a user would try."""

import statistics
import time
from typing import Any

from benchmarks.gpu.pages import Sizes
from moco_jax.config import Config

# Plain batch norm in all but one: groups are a loop of kernels in PyTorch. The one that takes longest to start is last.
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("eager, NCHW", {}),
    ("eager, channels_last", {"channels_last": True}),
    ("eager, channels_last, fused optimizer", {"channels_last": True, "fused": True}),
    ("eager, channels_last, fused optimizer, grouped", {"channels_last": True, "fused": True, "grouped": True}),
    ("torch.compile, channels_last, fused optimizer", {"channels_last": True, "fused": True, "compiled": True}),
)
VALID = {"H200": 2300, "H100": 2100}  # images/s of ResNet-50 below which PyTorch was not used well


def measure(c: Config, sizes: Sizes, **options: Any) -> dict[str, Any]:
    """images/s of one variant with autocast to bfloat16, or how it failed."""
    import torch

    try:
        return _variant(c, sizes, **options) | {"torch": torch.__version__}
    except Exception as error:  # of a compiler, a kernel, the memory: the other variants count all the same
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _variant(c: Config, sizes: Sizes, *, grouped: bool = False, **options: Any) -> dict[str, Any]:
    import torch

    from tests.parity.torch_reference import Encoder, Moco

    assert c.moco is not None and c.queue is not None
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    group = c.bn.group_size if grouped else c.batch_size
    online, target = (
        Encoder(c.model.arch, c.model.stem, c.model.width, c.model.head, c.model.dim, group).to(device)
        for _ in range(2)
    )
    moco = Moco(
        online,
        target,
        dim=c.model.dim,
        queue_size=c.queue.size or 65_536,
        momentum=c.moco.momentum,
        temperature=c.moco.temperature,
        symmetric=c.moco.symmetric,
        weight_decay=c.optimizer.weight_decay,
        compute=torch.bfloat16,
        **options,
    )
    shape = (c.batch_size, 3, c.views.size, c.views.size)
    views = [torch.randn(shape, device=device) for _ in range(2)]
    order = torch.randperm(c.batch_size, device=device)

    def go(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            moco.step(views, [order], 0.03)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    go(3)
    warm = time.perf_counter() - began
    steps = max(1, round(sizes.repeat_seconds / max(go(2), 1e-6)))
    found = [go(steps) for _ in range(sizes.repeats)]
    step = statistics.median(found)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {
        "images_per_second": c.batch_size / step,
        "step_milliseconds": 1e3 * step,
        "spread_milliseconds": [1e3 * min(found), 1e3 * max(found)],
        "first_three_steps_seconds": warm,
        "peak_bytes": peak,
    }
