"""Names and layouts of a ResNet in PyTorch, as torchvision and MoCo write them, and here. Arrays are numpy's; no torch.

| here | there |
|---|---|
| params/backbone/layer1_0/conv1/kernel (h, w, in, out) | layer1.0.conv1.weight (out, in, h, w) |
| params/backbone/layer2_0/downsample_bn/scale, bias | layer2.0.downsample.1.weight, bias |
| batch_stats/backbone/bn1/mean, var | bn1.running_mean, running_var |
| params/head/fc_0/kernel (in, out) | fc.0.weight (out, in) |
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from moco_jax.config import ConfigError

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
MODULES = (
    (r"(layer\d+)_(\d+)", r"\1.\2"),
    (r"downsample_conv", "downsample.0"),
    (r"downsample_bn", "downsample.1"),
    (r"fc_(\d+)", r"fc.\1"),
)
UNUSED = "num_batches_tracked"  # torch counts batches beside the running statistics, and nothing reads it

Tree = Any  # {"params": {"backbone", "head"}, "batch_stats": {"backbone", ...}} of an encoder


def torch_name(path: tuple[str, ...]) -> str:
    """The name in a torchvision state_dict of the leaf at `path`, such as ("params", "head", "fc", "kernel")."""
    _, _, *modules, leaf = path
    for pattern, name in MODULES:
        modules = [re.sub(f"^{pattern}$", name, m) for m in modules]
    return ".".join([*modules, LEAVES[leaf]])


def to_torch(network: Tree) -> dict[str, np.ndarray]:
    """The state_dict of an encoder {"params", "batch_stats"}: torchvision's names, torch's layouts, dtypes kept."""
    leaves = traverse_util.flatten_dict(network)
    return {torch_name(path): _to_torch_layout(np.asarray(leaf)) for path, leaf in leaves.items()}


def from_torch(tensors: Mapping[str, np.ndarray], like: Tree) -> Tree:
    """An encoder {"params", "batch_stats"} shaped as `like` from a state_dict of numpy arrays, dtypes kept.

    `like` may hold arrays or jax.ShapeDtypeStruct. Raises ConfigError where a name is missing on either side, or a
    shape differs; torch's count of batches alone is left out.
    """
    wanted = {torch_name(path): (path, leaf.shape) for path, leaf in traverse_util.flatten_dict(like).items()}
    given = {name for name in tensors if not name.endswith(UNUSED)}
    if missing := sorted(set(wanted) - given):
        raise ConfigError(f"the PyTorch weights lack {_listed(missing)}: are they of another architecture or head?")
    if left := sorted(given - set(wanted)):
        raise ConfigError(f"the encoder has no place for {_listed(left)}: is it of another architecture or head?")
    out = {}
    for name, (path, shape) in wanted.items():
        value = _from_torch_layout(np.asarray(tensors[name]))
        if value.shape != tuple(shape):
            raise ConfigError(f"{name} is {value.shape} in our layout, but the encoder's is {tuple(shape)}")
        out[path] = value
    return traverse_util.unflatten_dict(out)


def _to_torch_layout(value: np.ndarray) -> np.ndarray:
    """(h, w, in, out) -> (out, in, h, w); (in, out) -> (out, in); vectors as they are."""
    return value.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim])


def _from_torch_layout(value: np.ndarray) -> np.ndarray:
    return value.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim])


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
