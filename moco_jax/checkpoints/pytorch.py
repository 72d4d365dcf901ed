"""PyTorch's files, read without running anything in them, and written; only `libraries` imports torch beside it."""

import hashlib
import importlib.metadata
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from moco_jax.checkpoints import messages
from moco_jax.checkpoints.weights import Tensors
from moco_jax.config import ConfigError, Model
from moco_jax.models.resnet import ARCHS, STEMS, BasicBlock

OLDEST = (2, 10)  # below it, code in a file runs even with weights_only=True (CVE-2025-32434, CVE-2026-24747)
INSTALL = 'pip install "moco_jax[torch]"'
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"  # how files of torch before 1.6 begin: a pickled number
FOLDER = 0x10  # the bit of a zip entry's attributes that says so
EPSILON = 1e-5  # of torch's batch norm
UNSAFE = r"unsupported global:? (?:global )?([\w.]+)"  # how torch names what it did not run
DEEPEST, VALUES, MOST = 12, 1_000_000, 150  # containers in each other, values in all; characters of a stranger's text


def installed() -> bool:
    """Whether there is a torch at all."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


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
        with warnings.catch_warnings(action="ignore"):  # of what is deprecated in torch, not in the file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refused(path, error) from None
    return _Plain(torch, path).of(content, "", 0)


def _check_whole(path: Path) -> None:
    """ConfigError where a zip archive is not what its checksums say: torch stores them and does not look."""
    size = path.stat().st_size
    if size == 0:
        raise ConfigError(f"{path} is empty")
    if not is_file(path):
        with path.open("rb") as file:
            begins = file.read(16)
        raise ConfigError(
            f"{path} is no PyTorch file and no safetensors: it begins with {begins!r}"
            + ("; a Detectron2 .pkl is only written: give the file it was made from" if path.suffix == ".pkl" else "")
        )
    if not has_checksums(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not any(e.filename.endswith("/data.pkl") for e in entries):
                have = messages.listed(archive.namelist()) or "nothing"
                raise ConfigError(f"{path} is a zip archive of {have}: no PyTorch file")
            _check_entries(path, size, entries)
            damaged = archive.testzip()
    except ConfigError:
        raise
    except Exception as error:  # BadZipFile, and what a damaged header makes of zipfile's and zlib's code
        reason = messages.one_line(str(error), MOST) or type(error).__name__
        raise ConfigError(f"{path} is cut off or damaged ({reason}): fetch or copy it again") from None
    if damaged is not None and not any(e.CRC for e in entries):
        raise ConfigError(f"{path} has no checksums (torch.serialization.set_crc32_options): save it again with them")
    if damaged is not None:
        name = messages.one_line(damaged, MOST)
        raise ConfigError(f"{path} is damaged in {name}, which its checksum tells: fetch or copy it again")


def _check_entries(path: Path, size: int, entries: list[zipfile.ZipInfo]) -> None:
    """ConfigError for what torch never writes, and reads as something else than the bytes that have the checksum."""
    if any(e.filename.endswith("/constants.pkl") for e in entries):
        raise ConfigError(f"{path} is a program (TorchScript): refused, not run; save its state_dict instead")
    for e in entries:
        packed = e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size
        if packed or e.is_dir() or e.external_attr & FOLDER:  # of a folder it returns memory that nobody wrote to
            kind = "packed" if packed else "a folder"
            name = messages.one_line(e.filename, MOST)
            raise ConfigError(f"{path}: its entry {name} is {kind}, as in no PyTorch file: it is damaged, or repacked")
    if sum(e.file_size for e in entries) > size:
        raise ConfigError(f"{path} would unpack to more than its {size:,} bytes, as no PyTorch file does")


def _refused(path: Path, error: Exception) -> ConfigError:
    """In our words: torch's own advise to load the file by running what is in it."""
    text = " ".join(str(error).split())
    if code := re.search(UNSAFE, text, re.IGNORECASE):
        return ConfigError(
            f"{path} holds {messages.one_line(code[1], 80)}, which is no tensor and no plain value: refused, and "
            "nothing in it was run; save the weights again without it"
        )
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in text.lower():
        return ConfigError(
            f"{path} holds more than tensors and plain values, or is damaged: refused, and nothing in it was run"
        )
    reason = messages.one_line(re.sub(r"\s*\[enforce fail.*?\]|\. ?(Traceback|\(Could this).*", "", text), MOST)
    return ConfigError(f"{path} is cut off or damaged ({reason or type(error).__name__}): fetch or copy it again")


class _Plain:
    """What torch read, with tensors as numpy arrays and plain containers; ConfigError naming the place of all else."""

    def __init__(self, torch: ModuleType, path: Path):
        self._torch, self._path, self._values = torch, path, 0

    def of(self, value: Any, where: str, depth: int) -> Any:
        """One value, `depth` containers down at a place such as "state_dict.conv1.weight"."""
        self._values += 1
        if depth > DEEPEST or self._values > VALUES:  # also what holds itself, or itself many times over
            raise self._error(where, f"lies deeper than {DEEPEST} containers, or is one of more than {VALUES:,} values")
        if isinstance(value, self._torch.Tensor):
            return self._array(value, where)
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, (str, int)):
                    raise self._error(where, f"has a {type(key).__name__} as a key, where names and numbers are plain")
            return {k: self.of(v, f"{where}.{k}".lstrip("."), depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.of(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value))
        if isinstance(value, int) and value.bit_length() > 64:
            raise self._error(where, f"is a number of {value.bit_length()} bits")
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        raise self._error(where, f"is a {type(value).__name__}; weights are tensors and plain values")

    def _array(self, value: Any, where: str) -> np.ndarray:
        if (
            value.layout != self._torch.strided
            or value.is_quantized
            or value.is_complex()
            or value.device.type != "cpu"
        ):
            kind = "quantised" if value.is_quantized else f"{value.layout}, {value.dtype}, {value.device}"
            raise self._error(where, f"is a tensor of a kind that no weights are ({kind})")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # the same numbers many times over
            raise self._error(where, f"says that it holds {value.numel():,} numbers, and the file has fewer for it")
        wide = value.float() if value.dtype == self._torch.bfloat16 else value
        try:
            return np.asarray(wide.detach().numpy())
        except (TypeError, RuntimeError):  # of less than 16 bits
            raise self._error(where, f"is of {value.dtype}, which numpy has not") from None

    def _error(self, where: str, what: str) -> ConfigError:
        return ConfigError(f"{self._path}: {messages.one_line(where, MOST) or 'its content'} {what}")


def write(path: Path, content: Any) -> None:
    """Write a dict of numpy arrays, containers and plain values, arrays as tensors, whole or not at all."""
    torch = require(f"writing {path.name}")
    part = path.with_name(path.name + ".part")
    try:
        torch.save(_tensors(torch, content), part)
        part.replace(path)
    except (OSError, RuntimeError) as error:  # of a full disk torch says "unexpected pos"
        reason = re.sub(r"\[enforce fail[^]]*\][ .]*", "", str(error).splitlines()[0])[:80]
        raise ConfigError(f"{path.name} could not be written ({reason}): is the disk full?") from None
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

    An implementation apart from `models.resnet`, to compare with; torchvision's is the third. Of the widest type that
    any of the tensors or the images has.
    """
    torch = require("comparing features")
    dtype = np.result_type(images, *backbone.values())
    named = {name: torch.from_numpy(np.ascontiguousarray(value, dtype)) for name, value in backbone.items()}
    relu, arch, stem = torch.nn.functional.relu, ARCHS[model.arch], STEMS[model.stem]

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        weight = named[f"{name}.weight"]
        return torch.nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x: Any, name: str) -> Any:
        of = [named[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        return torch.nn.functional.batch_norm(x, *of, training=False, eps=EPSILON)

    with torch.inference_mode():
        x = relu(norm(conv(torch.from_numpy(np.ascontiguousarray(images, dtype)), "conv1", stem.stride), "bn1"))
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
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()
