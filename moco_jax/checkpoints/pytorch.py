"""PyTorch's files, read without running anything in them, and written; the one file that imports torch."""

import hashlib
import importlib.metadata
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from moco_jax.checkpoints.weights import Tensors
from moco_jax.config import ConfigError, Model
from moco_jax.models.resnet import ARCHS, STEMS, BasicBlock

OLDEST = (2, 10)  # below it, code in a file runs even with weights_only=True (CVE-2025-32434, CVE-2026-24747)
INSTALL = 'pip install "moco_jax[torch]"'
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"  # how files of torch before 1.6 begin: a pickled number
EPSILON = 1e-5  # of torch's batch norm


def require(what: str) -> ModuleType:
    """The module torch; ConfigError naming the extra where it is missing, or older than what is safe to read with."""
    try:
        import torch
    except ImportError:
        raise ConfigError(f"{what} needs PyTorch: {INSTALL}") from None
    version = importlib.metadata.version("torch")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        raise ConfigError(
            f"torch {version} can be made to run code by a file of weights; {what} needs 2.10 or newer: {INSTALL}"
        )
    return torch


def is_file(path: Path) -> bool:
    """Whether a file begins as PyTorch's do: a zip archive, or the number that older versions wrote."""
    with path.open("rb") as file:
        return file.read(len(LEGACY)).startswith((b"PK", LEGACY))


def has_checksums(path: Path) -> bool:
    """Whether damage to a file is noticed: a zip archive has a checksum for each entry, the older format none."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def read(path: Path) -> Any:
    """What a file holds: tensors as numpy arrays; dicts, lists, texts and numbers as they are. Nothing in it is run.

    bfloat16, which numpy lacks, becomes float32, exactly. Raises ConfigError, in one line, for a file that is cut off,
    damaged (where the format can tell: `has_checksums`) or of another format, and for one that holds anything else.
    """
    torch = require(f"reading {path}")
    _check_whole(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refused(path, error) from None
    return _plain(torch, content, path, "")


def _check_whole(path: Path) -> None:
    """ConfigError where a zip archive is not what its checksums say: torch stores them and does not look."""
    if path.stat().st_size == 0:
        raise ConfigError(f"{path} is empty")
    if not is_file(path):
        with path.open("rb") as file:
            begins = file.read(16)
        raise ConfigError(f"{path} is no PyTorch file: it begins with {begins!r}")
    if not has_checksums(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # BadZipFile, and what a damaged header makes of zipfile's and zlib's code
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{path} is cut off or damaged ({reason}): fetch or copy it again") from None
    if damaged is not None:
        raise ConfigError(f"{path} is damaged in {damaged}, which its checksum tells: fetch or copy it again")


def _refused(path: Path, error: Exception) -> ConfigError:
    """In our words: torch's own advise to load the file by running what is in it."""
    text = " ".join(str(error).split())
    if code := re.search(r"unsupported (?:global|class):? (?:global )?([\w.]+\.\w+)", text, re.IGNORECASE):
        return ConfigError(
            f"{path} holds {code[1]}, which is no tensor and no plain value: refused, and nothing in it was run; save "
            "the weights again without it"
        )
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in text.lower():
        return ConfigError(
            f"{path} holds more than tensors and plain values, or is damaged: refused, and nothing in it was run"
        )
    reason = re.sub(r"\s*\[enforce fail.*?\]|\. ?Traceback.*", "", text)[:150] or type(error).__name__
    return ConfigError(f"{path} is cut off or damaged ({reason}): fetch or copy it again")


def _plain(torch: ModuleType, value: Any, path: Path, where: str) -> Any:
    """Tensors as numpy arrays, containers plain; ConfigError naming the place of anything else."""
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise ConfigError(f"{path}: {where} is a tensor of a kind that no weights are ({value.layout})")
        wide = value.float() if value.dtype == torch.bfloat16 else value
        return wide.detach().numpy()
    if isinstance(value, Mapping):
        return {k: _plain(torch, v, path, f"{where}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(torch, v, path, f"{where}[{i}]") for i, v in enumerate(value))
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ConfigError(f"{path}: {where} is a {type(value).__name__}; weights are tensors and plain values")


def write(path: Path, content: Any) -> None:
    """Write a dict of numpy arrays, containers and plain values, arrays as tensors, whole or not at all."""
    torch = require(f"writing {path}")
    part = path.with_name(path.name + ".part")
    try:
        torch.save(_tensors(torch, content), part)
        part.replace(path)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch's
        raise ConfigError(f"{path} could not be written ({str(error).splitlines()[0]})") from None
    finally:
        part.unlink(missing_ok=True)


def _tensors(torch: ModuleType, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if isinstance(value, dict):
        return {k: _tensors(torch, v) for k, v in value.items()}
    if isinstance(value, list):
        return [_tensors(torch, v) for v in value]
    return value


def sgd_state(
    shapes: Sequence[tuple[int, ...]],
    buffers: Sequence[np.ndarray],
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
) -> dict[str, Any]:
    """The state_dict of torch.optim.SGD over parameters of `shapes`, the first ones with momentum `buffers`."""
    torch = require("a checkpoint with its optimizer")
    held = [torch.empty(shape, device="meta") for shape in shapes]  # of which the state_dict holds numbers alone
    state = torch.optim.SGD(held, learning_rate, momentum=momentum, weight_decay=weight_decay).state_dict()
    return {**state, "state": {i: {"momentum_buffer": b} for i, b in enumerate(buffers)}}


def features(backbone: Tensors, model: Model, images: np.ndarray) -> np.ndarray:
    """Pooled features (N, D) of standardised images (N, C, H, W), by torch's own operations on a backbone's tensors.

    An implementation apart from `models.resnet`, to compare with; torchvision's is the third.
    """
    torch = require("comparing features")
    named = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in backbone.items()}
    relu, arch, stem = torch.nn.functional.relu, ARCHS[model.arch], STEMS[model.stem]

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        weight = named[f"{name}.weight"]
        return torch.nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x: Any, name: str) -> Any:
        of = [named[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        return torch.nn.functional.batch_norm(x, *of, training=False, eps=EPSILON)

    with torch.inference_mode():
        x = relu(norm(conv(torch.from_numpy(images), "conv1", stem.stride), "bn1"))
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1) if stem.pool else x
        for i, blocks in enumerate(arch.stage_sizes):
            for j in range(blocks):
                at, stride = f"layer{i + 1}.{j}", 2 if i and not j else 1
                strides = (stride, 1) if arch.block is BasicBlock else (1, stride, 1)
                y = x
                for n, step in enumerate(strides, 1):
                    y = norm(conv(y, f"{at}.conv{n}", step), f"{at}.bn{n}")
                    y = relu(y) if n < len(strides) else y
                if f"{at}.downsample.0.weight" in named:
                    x = norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
                x = relu(x + y)
        return np.asarray(x.mean((2, 3)).numpy())


def digests(path: Path) -> tuple[str, str]:
    """MD5 and SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        file.seek(0)
        return md5, hashlib.file_digest(file, "sha256").hexdigest()
