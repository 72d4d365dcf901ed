"""PyTorch's files: read without running them, written whole; its operations, a second opinion. Skips without torch."""

import hashlib
import sys
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: it writes the files that are read here")

from moco_jax.checkpoints import pytorch, weights  # noqa: E402
from moco_jax.config import ConfigError, Model  # noqa: E402
from tests.checkpoints import bad_files, foreign  # noqa: E402

PLAIN = {"a": {"b": [1, (2.5, None, True)], 3: "text"}, "t": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.mark.parametrize("legacy", [False, True])
def test_values_come_as_they_are(tmp_path, legacy):
    """Containers, numbers, texts; tensors as arrays of their dtype, also transposed, of zero axes, and parameters."""
    tensors = {
        "float64": torch.ones(2, dtype=torch.float64),
        "int32": torch.arange(3, dtype=torch.int32),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "part of another": torch.arange(10.0)[2:5],
    }
    content = {**PLAIN, "t": torch.from_numpy(PLAIN["t"]), **tensors}
    found = pytorch.read(foreign.save(tmp_path / "a.pth", content, legacy=legacy))
    assert {k: v for k, v in found.items() if k not in tensors and k != "t"} == {"a": PLAIN["a"]}
    assert isinstance(found["a"]["b"][1], tuple)
    np.testing.assert_array_equal(found["t"], PLAIN["t"])
    for name, tensor in tensors.items():
        assert isinstance(found[name], np.ndarray) and found[name].dtype == tensor.detach().numpy().dtype
        np.testing.assert_array_equal(found[name], tensor.detach().numpy())


def test_bfloat16_is_widened_exactly(tmp_path):
    """numpy has no such type; every one of its numbers is a float32."""
    value = torch.tensor([1.0, 3.140625, 1e38, -0.0]).bfloat16()
    found = pytorch.read(foreign.save(tmp_path / "a.pth", {"a": value}))["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, value.float().numpy())


def test_written_and_read_back(tmp_path):
    """The same content, loaded by torch without our help; nothing but the file is left."""
    path = tmp_path / "a.pth"
    pytorch.write(path, {**PLAIN, "turned": PLAIN["t"].T})
    found = torch.load(path, weights_only=True)
    assert found["a"] == PLAIN["a"] and torch.equal(found["t"], torch.from_numpy(PLAIN["t"]))
    assert found["turned"].is_contiguous() and torch.equal(found["turned"], torch.from_numpy(PLAIN["t"].T))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    """A full disk while torch writes: no half a file under the name, none beside, and one line."""
    (tmp_path / "a.pth").write_bytes(b"before")

    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError(
            "[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/0\nx"
        )

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        ConfigError, match=r"^a.pth could not be written \(PytorchStreamWriter failed .* data/0\): is the disk full"
    ):
        pytorch.write(tmp_path / "a.pth", PLAIN)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"before"]
    with pytest.raises(ConfigError, match="could not be written"):
        pytorch.write(tmp_path / "none" / "a.pth", PLAIN)


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """Few bytes that say they are many: no program that writes weights makes such an archive."""
    entries = []
    for name in ("a/data.pkl", "a/data/0"):
        entry = zipfile.ZipInfo(name)
        entry.file_size = entry.compress_size = 80
        entries.append(entry)
    pytorch._check_entries(tmp_path / "a.pth", 160, entries)
    with pytest.raises(ConfigError, match=r"a.pth"):
        pytorch._check_entries(tmp_path / "a.pth", 159, entries)


def test_torch_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    """By the name of the extra, and what for."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r'reading .*a.pth needs PyTorch: pip install "moco_jax\[torch\]"'):
        pytorch.read(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("version", "safe"), [("2.9.1+cu130", False), ("1.13", False), ("2.10.0", True), ("3.0", True)]
)
def test_a_torch_that_can_be_made_to_run_code_is_refused(monkeypatch, version, safe):
    """Two advisories: below 2.10 files run code in spite of weights_only."""
    monkeypatch.setattr(pytorch.importlib.metadata, "version", lambda _: version)
    if safe:
        assert pytorch.require("x") is torch
        return
    with pytest.raises(ConfigError, match="can be made to run code .* x needs 2.10 or newer"):
        pytorch.require("x")


def test_which_files_have_checksums(tmp_path):
    """zip archives and the older format begin otherwise, and nothing else is a file of torch's."""
    new = foreign.save(tmp_path / "a.pth", {"a": torch.ones(2)})
    old = foreign.save(tmp_path / "b.pth", {"a": torch.ones(2)}, legacy=True)
    (tmp_path / "c.pth").write_bytes(b"\x80\x02}q\x00.")
    files = (new, old, tmp_path / "c.pth")
    assert [pytorch.is_file(p) for p in files] == [True, True, False]
    assert [pytorch.has_checksums(p) for p in files] == [True, False, False]


def entries(path):
    """Where each entry of a zip archive has its record in the directory at the end."""
    content, out = path.read_bytes(), {}
    with zipfile.ZipFile(path) as archive:
        at = archive.start_dir
        for entry in archive.infolist():
            out[entry.filename.split("/", 1)[1]] = at
            at += 46 + len(entry.filename) + len(entry.extra) + len(entry.comment)
    assert all(content[at : at + 4] == b"PK\x01\x02" for at in out.values())
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({38: b"\x10"}, "a/data/0 is a folder, as in no PyTorch file"),
        ({16: bytes(4), 20: bytes(4)}, "a/data/0 is packed, as in no PyTorch file"),
    ],
)
def test_entries_that_torch_would_not_read_are_refused(tmp_path, change, message):
    """Called a folder, or of no packed bytes: torch then returns memory that nobody wrote to, checksum or not."""
    path = foreign.save(tmp_path / "a.pth", {"a": torch.arange(6.0)})
    content, at = bytearray(path.read_bytes()), entries(path)["data/0"]
    for offset, value in change.items():
        content[at + offset : at + offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        pytorch.read(path)


@pytest.mark.slow
def test_no_bit_of_an_archives_directory_changes_a_value(tmp_path):
    """Every bit that is outside of what has a checksum: refused, or without effect."""
    path = foreign.save(tmp_path / "a.pth", {"a": torch.arange(6.0)})
    with zipfile.ZipFile(path) as archive:
        bits = range(8 * archive.start_dir, 8 * path.stat().st_size)
    refused = 0
    for changed in bad_files.flipped(path, bits):
        try:
            found = pytorch.read(changed)
        except ConfigError:
            refused += 1
        else:
            assert list(found) == ["a"] and found["a"].dtype == np.float32
            np.testing.assert_array_equal(found["a"], np.arange(6, dtype=np.float32))
    assert refused > len(bits) / 4


def test_files_without_checksums_say_so(tmp_path):
    """An option of torch's leaves them out: such a file is not damaged, and its wholeness cannot be told."""
    torch.serialization.set_crc32_options(False)
    try:
        path = foreign.save(tmp_path / "a.pth", {"a": torch.ones(2)})
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(ConfigError, match="a.pth has no checksums .* save it again with them"):
        pytorch.read(path)


def test_digests(tmp_path):
    """Of the bytes in the file."""
    (tmp_path / "a").write_bytes(b"abc")
    assert pytorch.digests(tmp_path / "a") == (hashlib.md5(b"abc").hexdigest(), hashlib.sha256(b"abc").hexdigest())


def test_an_optimizers_state_is_torchs(tmp_path):
    """All parameters in one group, momentum of the first ones, the settings; torch's own optimizer takes it."""
    params = [np.full((2, 3), 1.0, np.float32), np.full((3,), 2.0, np.float32), np.zeros((2,), np.float32)]
    buffers = [np.full((2, 3), 5.0, np.float32), np.full((3,), 6.0, np.float32)]
    state = pytorch.sgd_state([p.shape for p in params], buffers, learning_rate=0.5, momentum=0.8, weight_decay=0.01)
    pytorch.write(tmp_path / "a.pth", state)
    held = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
    optimizer = torch.optim.SGD(held, 9.0)
    optimizer.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.8, 0.01) and group["nesterov"] is False
    assert [optimizer.state[p]["momentum_buffer"].tolist() for p in held[:2]] == [b.tolist() for b in buffers]
    assert held[2] not in optimizer.state


@pytest.mark.parametrize(
    ("arch", "stem", "channels"),
    [("resnet_tiny", "cifar", 3), ("resnet18", "cifar", 1), ("resnet18", "imagenet", 3), ("resnet50", "imagenet", 13)],
)
def test_features_are_those_of_a_torch_module(arch, stem, channels):
    """Basic blocks and bottlenecks, both stems: in evaluation mode, with running statistics that were trained."""
    torch.manual_seed(0)
    module = foreign.tiny(arch, stem, channels=channels)().train()
    with torch.no_grad():
        module(torch.randn(foreign.ROWS, channels, 32, 32))
        x = torch.randn(3, channels, 33, 33)
        expected = module.eval().features(x).numpy()
    backbone = {n: t.numpy() for n, t in module.state_dict().items() if not n.startswith("fc.") and "num" not in n}
    found = pytorch.features(backbone, Model(arch, stem=stem, width=4), x.numpy())
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)  # measured: 0 to 1e-7
    assert weights.describe(backbone).arch == arch


def test_features_of_double_precision_are_as_precise():
    """Weights in float64, or some of them, on images in float32: as torch computes in float64, no error of types."""
    torch.manual_seed(0)
    module = foreign.tiny()().double().eval()
    backbone = {n: t.numpy() for n, t in module.state_dict().items() if not n.startswith("fc.") and "num" not in n}
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = module.features(x.double()).numpy()
    found = pytorch.features(backbone, Model("resnet_tiny", stem="imagenet", width=4), x.numpy())
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    some = {**backbone, "conv1.weight": backbone["conv1.weight"].astype(np.float32)}
    assert pytorch.features(some, Model("resnet_tiny", stem="imagenet", width=4), x.numpy()).dtype == np.float64
