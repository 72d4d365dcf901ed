"""Whatever is given as weights: read as it is, or explained in a line; nothing in a file runs. Skips without torch."""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: it writes the files that are read here")

from moco_jax.checkpoints import pytorch, reading, safetensors_file  # noqa: E402
from moco_jax.checkpoints.huggingface_folders import write_huggingface  # noqa: E402
from moco_jax.config import ConfigError  # noqa: E402
from tests.checkpoints import bad_files, foreign, outcomes  # noqa: E402
from tests.checkpoints.portables import portable, same  # noqa: E402

FORMATS = [pytest.param(False, id="zip"), pytest.param(True, id="legacy", marks=pytest.mark.slow)]


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_never_runs(tmp_path, legacy):
    """Reducers that run a command, wherever they stand: refused by name, and the file that they make is not made."""
    for tried in outcomes.contents("code", tmp_path, legacy=legacy):
        assert tried.outcome == "explained" and not tried.executed, tried
        assert "nothing in it was run" in tried.message, tried


def test_code_in_these_files_would_run(tmp_path):
    """The same objects, unpickled as torch did before it was safe, do make that file: the test above says something."""
    code = (
        "import sys, pathlib, torch\n"
        "for name in sys.argv[1:]:\n"
        "    try: torch.load(name, weights_only=False)\n"
        "    except Exception: pass"
    )
    paths = {}
    for i, name in enumerate(bad_files.code(tmp_path)):
        value = bad_files.code(tmp_path / f"ran{i}")[name]
        paths[name] = foreign.save(tmp_path / f"{i}.pth", {"state_dict": value})
    subprocess.run([sys.executable, "-c", code, *paths.values()], capture_output=True, check=False)
    ran = {name for i, name in enumerate(paths) if (tmp_path / f"ran{i}").exists()}
    assert ran >= {"os.system", "builtins.eval", "builtins.exec", "pathlib.Path.touch", "pickle.loads", "timeit"}


CAUSES = {
    "wrong arch": "it says arch 'resnet50', and its tensors are those of resnet_tiny",
    "MoCo v3": "MoCo v3, which is not read",
    "head of v1 in the target alone": "head mlp 8, and encoder_k a resnet_tiny of width 4, 3 channels, head linear 8",
    "other channels in the target": "3 channels, head mlp 8, and encoder_k a resnet_tiny of width 4, 1 channels",
    "missing in the target": "in encoder_k, resnet_tiny of width 4 needs bn1.weight",
    "another width": "in encoder_q, bn1.weight is (4,), where resnet_tiny of width 8 has (8,)",
    "no head": "an encoder without the head that makes its keys",
    "queue of other features": "queue is (9, 24), and the head gives 8 features",
    "queue_ptr at the end": "queue_ptr is [24], which is no place in a queue of 24",
    "queue_ptr of many": "queue_ptr is int64(100000,)",
    "epoch true": "epoch is True; it must be a whole number from 0 on",
    "momentum missing": "the momentum of layer1.0.conv1.weight (4, 4, 3, 3) is none",
    "momentum of another shape": "the momentum of layer1.0.conv1.weight (4, 4, 3, 3) is (2,)",
    "momentum of the target": "momentum of 1 parameters that are none of the online encoder's",
    "two groups": "no SGD with one group",
    "params one number": "or one number twice",
    "too few params": "61 parameters; 31 of the online encoder are needed, or 62 of both",
    "Adam": "its optimizer is an Adam",
    "extra count of batches": "layer9.0.bn1.num_batches_tracked counts the batches of no batch norm",
    "classifier of another width": "the classifier is (8, 9) with bias (8,); on 16 features they are",
    "notebook with another": "conv1.weight is no layer of the notebook's ResNet",
    "nothing": "holds nothing, and weights are a dict",
    "no channels": "conv1.weight is empty",
    "extra layer": "4 stages, (1, 1, 1, 1) basic blocks, which is none of resnet_tiny",
}


@pytest.mark.parametrize("legacy", FORMATS)
@pytest.mark.parametrize("kind", ["values", "tensors", "structures"])
def test_what_is_no_checkpoint_is_explained(tmp_path, kind, legacy):
    """Values, tensors and structures that make no sense as weights: one line that names the file, and the cause."""
    tried = list(outcomes.contents(kind, tmp_path, legacy=legacy))
    assert len(tried) > 40 and [t for t in tried if t.outcome != "explained" or t.executed] == []
    said = {t.name: t.message for t in tried}
    for name, cause in CAUSES.items() if kind == "structures" else ():
        assert cause in said[name], (name, said[name])


def test_other_files_are_explained(tmp_path):
    """Web pages, pictures, archives, programs, folders, and files cut off."""
    tried = list(outcomes.files(tmp_path))
    assert len(tried) > 30 and [t for t in tried if t.outcome != "explained"] == []
    said = {t.name: t.message for t in tried}
    assert "config.json cannot be read" in said["a folder"]
    assert "script.pt is a program (TorchScript): refused" in said["TorchScript"]
    assert "bomb.zip: its entry archive/data.pkl is packed" in said["a bomb of 256 MiB"]
    assert "arrays.npz is a zip archive of conv1.npy: no PyTorch file" in said["arrays.npz"]
    assert "page.html is no PyTorch file and no safetensors: it begins with b'<!DOCTYPE html>" in said["page.html"]


def test_a_flipped_bit_changes_no_value_in_silence(tmp_path):
    """A zip archive's checksums: each flip is refused, or lies in padding and changes nothing that is read."""
    path = foreign.save(tmp_path / "a.pth.tar", bad_files.good())
    seen = {}
    for bit, outcome, message in outcomes.flips(path, bad_files.some_bits(path, 150)):
        seen.setdefault(outcome, []).append((bit, message))
    assert seen.keys() == {"explained", "equal"}, {k: v for k, v in seen.items() if k not in ("explained", "equal")}
    assert len(seen["explained"]) > 100


def test_the_older_format_is_checked_by_its_digest_alone(tmp_path):
    """It has no checksums: flips in its numbers change them, which nobody but its SHA-256 can tell."""
    path = foreign.save(tmp_path / "a.pth.tar", bad_files.good(), legacy=True)
    assert not pytorch.has_checksums(path)
    sha256, bits = pytorch.digests(path)[1], bad_files.some_bits(path, 60)
    outcome = [o for _, o, _ in outcomes.flips(path, bits)]
    assert set(outcome) == {"explained", "equal", "changed"} and outcome.count("changed") > 20
    for changed in bad_files.flipped(path, bits):
        assert outcomes.of(changed, sha256=sha256)[0] == "explained"


def test_the_digest_is_compared_first(tmp_path):
    """In either case of letters; another one is refused with both, before anything is unpickled."""
    path = foreign.save(tmp_path / "a.pth.tar", bad_files.good())
    sha256 = pytorch.digests(path)[1]
    assert reading.read(path, sha256=sha256.upper()).sha256 == sha256
    evil = foreign.save(tmp_path / "b.pth.tar", bad_files.code(tmp_path / "marker")["os.system"])
    with pytest.raises(
        ConfigError, match=f"b.pth.tar has SHA-256 {pytorch.digests(evil)[1]}, not {sha256}: it is damaged"
    ):
        reading.read(evil, sha256=sha256)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path):
    """Permission denied is no traceback."""
    path = foreign.save(tmp_path / "a.pth", bad_files.good())
    path.chmod(0)
    with pytest.raises(ConfigError, match=r"a.pth cannot be read \(Permission denied\)"):
        reading.read(path)


def test_a_disk_that_fails_is_named(tmp_path, monkeypatch):
    """What the system says while a file is read, with the file's name."""
    path = foreign.save(tmp_path / "a.pth", bad_files.good())

    def fails(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pytorch, "digests", fails)
    with pytest.raises(ConfigError, match=r"a.pth cannot be read \(Input/output error\)"):
        reading.read(path)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch):
    """Its SHA-256 is of what was read, not of what was there before."""
    path, sha256 = foreign.save(tmp_path / "a.pth", bad_files.good()), pytorch.digests(tmp_path / "a.pth")[1]
    before = pytorch.read

    def read(asked):
        foreign.save(path, bad_files.good(), legacy=True)
        return before(asked)

    monkeypatch.setattr(pytorch, "read", read)
    with pytest.raises(ConfigError, match="a.pth was replaced by another file while it was read"):
        reading.read(path, sha256=sha256)


@pytest.mark.parametrize("folder", [False, True])
def test_the_bytes_whose_digest_is_compared_are_those_that_are_read(tmp_path, monkeypatch, folder):
    """Of safetensors, alone or in a folder: a file that is replaced meanwhile is neither read nor named."""
    pytest.importorskip("safetensors", reason="safetensors is an extra")
    one = portable(width=8)
    write_huggingface(one, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors, sha256 = safetensors_file.read(file)[0], pytorch.digests(file)[1]
    if not folder:
        safetensors_file.write(file := tmp_path / "a.safetensors", one.backbone)
        tensors, sha256 = safetensors_file.read(file)[0], pytorch.digests(file)[1]
    before = safetensors_file.read

    def read(*asked):
        safetensors_file.write(file, {name: value + 1 for name, value in tensors.items()})
        return before(*asked)

    monkeypatch.setattr(safetensors_file, "read", read)
    found = reading.read(tmp_path if folder else file, sha256=sha256)
    assert found.sha256 == sha256
    same(found.online.backbone, one.backbone)
    with pytest.raises(ConfigError, match=f"safetensors has SHA-256 {pytorch.digests(file)[1]}, not {sha256}"):
        reading.read(tmp_path if folder else file, sha256=sha256)


def test_files_are_foreign_and_folders_are_not(tmp_path):
    """What a command takes for weights of another program."""
    (tmp_path / "a.pth").write_bytes(b"")
    assert reading.is_foreign(tmp_path / "a.pth")
    assert not reading.is_foreign(tmp_path) and not reading.is_foreign(tmp_path / "none")
