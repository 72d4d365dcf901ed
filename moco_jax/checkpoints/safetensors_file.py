"""safetensors files as numpy arrays, in and out: the only file that says safetensors, which is an extra."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax.checkpoints.weights import Tensors
from moco_jax.config import ConfigError

# As files name them; numpy has no bfloat16.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
DTYPES |= {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}


def is_file(path: Path) -> bool:
    """Whether a file begins as the format does: the length of a header, and the brace that opens it."""
    with path.open("rb") as file:
        begins = file.read(9)
    return begins[8:] == b"{" and int.from_bytes(begins[:8], "little") < path.stat().st_size


def read(path: Path, data: bytes | None = None) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a file. Every tensor keeps its dtype but bfloat16, which is widened to float32, exactly.

    `data` is its content, where that has been read already.

    The format has no checksum: a file cut short is refused, one with other bytes inside is not. Raises ConfigError
    naming the file where it cannot be read or is none, and where the package is missing.
    """
    library = _library()
    try:
        data = path.read_bytes() if data is None else data
        found = library.deserialize(data)
    except (OSError, library.SafetensorError) as error:
        raise ConfigError(f"{path} is no safetensors file that can be read whole ({_first_line(error)})") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # as the library has just read it
    return {name: _array(path, name, view) for name, view in found}, header.get("__metadata__", {})


def write(path: Path, tensors: Tensors) -> None:
    """Write tensors as PyTorch's programs expect them: metadata {"format": "pt"}.

    Raises ConfigError where the package is missing or the file cannot be written.
    """
    library = _library()
    from safetensors import numpy

    dense = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}  # it writes memory as it lies
    try:
        path.write_bytes(numpy.save(dense, metadata={"format": "pt"}))  # save_file makes a file for its owner alone
    except (OSError, library.SafetensorError) as error:
        raise ConfigError(f"{path} cannot be written ({_first_line(error)})") from error


def _library() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise ConfigError(
            'folders of timm and Hugging Face need the package safetensors: pip install "moco_jax[safetensors]"'
        ) from error
    return safetensors


def _array(path: Path, name: str, view: dict[str, Any]) -> np.ndarray:
    dtype, shape, data = view["dtype"], tuple(view["shape"]), view["data"]
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype not in DTYPES:
        raise ConfigError(f"{path}: {name} is of dtype {dtype}; weights are F64, F32, F16 or BF16")
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
