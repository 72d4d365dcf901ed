"""Names and layouts of a ResNet in PyTorch, as torchvision and MoCo write them, and here. Arrays are numpy's; no torch.

| here | there |
|---|---|
| params/backbone/layer1_0/conv1/kernel (h, w, in, out) | layer1.0.conv1.weight (out, in, h, w) |
| params/backbone/layer2_0/downsample_bn/scale, bias | layer2.0.downsample.1.weight, bias |
| batch_stats/backbone/bn1/mean, var | bn1.running_mean, running_var |
| params/head/fc_0/kernel (in, out) | fc.0.weight (out, in) |
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from moco_jax.checkpoints.messages import listed
from moco_jax.config import ConfigError

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
MODULES = (  # every module that has a name there
    (r"(layer\d+)_(\d+)", r"\1.\2"),
    (r"downsample_conv", "downsample.0"),
    (r"downsample_bn", "downsample.1"),
    (r"fc_(\d+)", r"fc.\1"),
    (r"(conv\d+|bn\d+|fc)", r"\1"),
)
TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}  # axes of convolutions, dense layers and vectors
FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
STATISTICS = ("running_mean", "running_var")
BATCH_COUNT = "num_batches_tracked"  # beside torch's running statistics; nothing reads it

Tree = Any  # {"params": {"backbone", "head"}, "batch_stats": {"backbone", ...}} of an encoder


def torch_name(path: tuple[str, ...]) -> str:
    """The name in a torchvision state_dict of the leaf at `path`, such as ("params", "head", "fc", "kernel").

    Raises ConfigError for a module or leaf that torchvision's ResNets do not have.
    """
    _, _, *modules, leaf = path
    found = [_module_name(m) for m in modules]
    if leaf not in LEAVES or None in found:
        raise ConfigError(
            f"{'/'.join(path)} has no name in torchvision's ResNets: names are known for their layers only"
        )
    return ".".join([*filter(None, found), LEAVES[leaf]])


def in_order(names: Iterable[str]) -> list[str]:
    """The names in the order in which torch's modules were made, and thus its parameters numbered."""
    return sorted(names, key=_place)


def _place(name: str) -> tuple[Any, ...]:
    """Stem, stages with their shortcuts last, fc; in a batch norm: weight, bias, statistics."""
    *modules, leaf = name.split(".")
    top = modules[0]
    first = {"conv1": 0, "bn1": 1, "fc": 3}.get(top, 2)
    numbers = [int(part) for part in (top.removeprefix("layer"), *modules[1:]) if part.isdigit()]
    inside = next((m for m in modules[1:] if not m.isdigit()), "")  # conv2, bn2, downsample
    layer = (9, 0) if inside == "downsample" else (int(inside[-1]), inside.startswith("bn")) if inside else (0, 0)
    leaves = ("weight", "bias", *STATISTICS, BATCH_COUNT)
    return first, numbers[:2], layer, numbers[2:], leaves.index(leaf)


def _module_name(module: str) -> str | None:
    for pattern, name in MODULES:
        if match := re.fullmatch(pattern, module):
            return match.expand(name)
    return None


def to_torch(network: Tree) -> dict[str, np.ndarray]:
    """The state_dict of an encoder {"params", "batch_stats"}: torchvision's names, torch's layouts, dtypes kept.

    Raises ConfigError where `torch_name` does, and where two leaves would get one name.
    """
    out: dict[str, np.ndarray] = {}
    for path, leaf in traverse_util.flatten_dict(network).items():
        name = torch_name(path)
        if name in out:
            raise ConfigError(f"{'/'.join(path)} and another leaf would both be {name}: convert one part at a time")
        out[name] = _transposed(name, np.asarray(leaf), TO_TORCH)
    return out


def from_torch(tensors: Mapping[str, np.ndarray], like: Tree) -> Tree:
    """An encoder {"params", "batch_stats"} shaped as `like` from a state_dict of numpy arrays, dtypes kept.

    `like` may hold arrays or jax.ShapeDtypeStruct. Raises ConfigError where a name is missing on either side, or a
    shape differs; torch's count of batches alone is left out.
    """
    paths, wanted = {}, {}
    for path, leaf in traverse_util.flatten_dict(like).items():
        name = torch_name(path)
        paths[path] = name
        wanted[name] = _transposed(name, np.broadcast_to(np.float32(0), leaf.shape), TO_TORCH).shape
    check({n: t for n, t in tensors.items() if not n.endswith(BATCH_COUNT)}, wanted, whose="the encoder")
    return traverse_util.unflatten_dict(
        {path: _transposed(name, np.asarray(tensors[name]), FROM_TORCH) for path, name in paths.items()}
    )


def check(tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], *, whose: str) -> None:
    """Raises ConfigError, naming tensors, unless these have exactly the names and shapes wanted by `whose` network."""
    if missing := [name for name in wanted if name not in tensors]:
        raise ConfigError(f"{whose} needs {listed(missing)}, which is not there")
    if left := [name for name in tensors if name not in wanted]:
        raise ConfigError(f"{whose} has no place for {listed(left)}")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ConfigError(f"{name} is {tensors[name].shape}, where {whose} has {shape}")


def _transposed(name: str, value: np.ndarray, axes: Mapping[int, tuple[int, ...]]) -> np.ndarray:
    if value.ndim not in axes:
        raise ConfigError(f"{name} has {value.ndim} axes {value.shape}; layouts are known for 1, 2 and 4")
    return value.transpose(axes[value.ndim])
