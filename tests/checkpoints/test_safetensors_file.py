"""safetensors files: every dtype as stored but bfloat16, and no file that is cut short or something else."""

import json
import struct
import sys

import numpy as np
import pytest

from moco_jax.checkpoints import safetensors_file
from moco_jax.config import ConfigError

TENSORS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "half": np.float16([1.5, -2]),
    "double": np.float64([[0.1]]),
    "count": np.array(7, np.int64),
}


def raw(entries: dict[str, tuple[str, list[int], bytes]], **extra: object) -> bytes:
    """A file by the format's own description: length, header in JSON, bytes."""
    header, body = dict(extra), b""
    for name, (dtype, shape, data) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_without_the_package_it_is_asked_for(tmp_path, monkeypatch):
    """One line that says what to install."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: safetensors_file.read(tmp_path / "a"), lambda: safetensors_file.write(tmp_path / "a", {})):
        with pytest.raises(ConfigError, match=r'pip install "moco_jax\[safetensors\]"$'):
            call()


def test_there_and_back(tmp_path):
    """Names, dtypes, shapes (scalars too) and values; the metadata is what PyTorch's programs ask for."""
    pytest.importorskip("safetensors", reason="safetensors is an extra")
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, TENSORS)
    back, metadata = safetensors_file.read(path)
    assert metadata == {"format": "pt"} and back.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert np.array_equal(back[name], tensor)
        assert back[name].flags.writeable


def test_a_transposed_tensor_is_written_in_order(tmp_path):
    """The library writes memory as it lies, whatever the strides say."""
    pytest.importorskip("safetensors", reason="safetensors is an extra")
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, {"a": TENSORS["a.weight"].transpose(2, 0, 1)})
    assert np.array_equal(safetensors_file.read(path)[0]["a"], TENSORS["a.weight"].transpose(2, 0, 1))


def test_bfloat16_is_widened_exactly(tmp_path):
    """Sign, exponent and the seven bits: 1, -2.5, 3.140625, infinity, the smallest."""
    pytest.importorskip("safetensors", reason="safetensors is an extra")
    path = tmp_path / "a.safetensors"
    values = np.float32([1, -2.5, 3.140625, np.inf, 2.0**-133])
    path.write_bytes(raw({"a": ("BF16", [5], (values.view(np.uint32) >> 16).astype("<u2").tobytes())}))
    back, metadata = safetensors_file.read(path)
    assert back["a"].dtype == np.float32 and np.array_equal(back["a"], values) and metadata == {}


def test_a_dtype_that_no_weights_have_is_refused(tmp_path):
    """By name and dtype."""
    pytest.importorskip("safetensors", reason="safetensors is an extra")
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw({"odd": ("F8_E4M3", [2], b"ab")}))
    with pytest.raises(ConfigError, match="a.safetensors: odd is of dtype F8_E4M3"):
        safetensors_file.read(path)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_file_cut_short_is_refused_by_name(tmp_path, share):
    """Wherever it ends."""
    pytest.importorskip("safetensors", reason="safetensors is an extra")
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, TENSORS)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ConfigError, match=r"^\S*a.safetensors is no safetensors file[^\n]*$"):
        safetensors_file.read(path)


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"PK\x03\x04" + bytes(100), b"\xff" * 64, raw({}) + b"more"])
def test_what_is_something_else_is_refused_by_name(tmp_path, content):
    """A pickle, a zip, noise, and bytes that no tensor has."""
    pytest.importorskip("safetensors", reason="safetensors is an extra")
    (path := tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^\S*a.safetensors is no safetensors file[^\n]*$"):
        safetensors_file.read(path)


def test_no_file_and_no_folder(tmp_path):
    """Both name what is missing."""
    pytest.importorskip("safetensors", reason="safetensors is an extra")
    with pytest.raises(ConfigError, match="none.safetensors is no safetensors file"):
        safetensors_file.read(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="a.safetensors cannot be written"):
        safetensors_file.write(tmp_path / "none" / "a.safetensors", TENSORS)
