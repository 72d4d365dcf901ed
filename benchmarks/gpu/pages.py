"""What the suite runs: config pages at full size, or shrunken so that a CPU runs everything in minutes."""

import dataclasses
from typing import Any

from moco_jax import config, pages


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    changes: dict[str, Any]  # of the ResNet-50 page
    demo_changes: dict[str, Any]  # of the CIFAR-10 page
    batches: tuple[int, ...]  # images per step of ResNet-50
    beside: int  # the batch at which PyTorch stands beside, one of `batches`
    demo_steps: int  # per dispatch
    repeats: int
    repeat_seconds: float  # that a repeat takes at least
    queues: tuple[int, ...]  # K of the loss alone
    maps: tuple[int, ...]  # (N, H, W, C) of batch norm alone
    product: int  # side of the matrix product that shows the ceiling
    copied: int  # bytes of the copy that shows the other


FULL = Sizes(
    changes={},
    demo_changes={},
    batches=(32, 64, 128, 256, 512),
    beside=256,
    demo_steps=97,
    repeats=5,
    repeat_seconds=0.5,
    queues=(65_536, 1_048_576),
    maps=(256, 56, 56, 256),
    product=8192,
    copied=2**32,
)
SMALL: dict[str, Any] = {"model.arch": "resnet_tiny", "model.width": 4, "model.dim": 8, "queue.size": 64}
SMALL |= {"views.size": 16, "views.recipe": "cifar_demo"}
SHRUNKEN = Sizes(
    changes=SMALL | {"bn.group_size": 4},
    demo_changes=SMALL | {"bn.group_size": 4, "batch_size": 16, "shuffle.block": 16},
    batches=(8, 16),
    beside=16,
    demo_steps=2,
    repeats=2,
    repeat_seconds=0.0,
    queues=(64, 256),
    maps=(8, 4, 4, 8),
    product=64,
    copied=2**16,
)
SIZES = {"full": FULL, "short": dataclasses.replace(FULL, batches=(32, 256)), "shrunken": SHRUNKEN}


def imagenet(sizes: Sizes, **more: Any) -> config.Config:
    """MoCo v2's page; `more` as {"section.key": value}."""
    return _page("moco_v2_r50", sizes.changes | more)


def demo(sizes: Sizes, **more: Any) -> config.Config:
    """The CIFAR-10 page."""
    return _page("cifar10_demo", sizes.demo_changes | more)


def one_group(c: config.Config) -> config.Config:
    """The same with one batch-norm group over the batch, and so without a shuffle: plain batch norm."""
    return dataclasses.replace(c, bn=config.BatchNorm(c.batch_size), shuffle=config.Shuffle(0))


def _page(name: str, changes: dict[str, Any]) -> config.Config:
    page = pages.load(name)
    page.update_from_flattened_dict({"data.path": "resident", "data.canvas": 0, "eval.every_epochs": 0} | changes)
    return config.read(page)
