"""The digits as a TFDS data set: right pixels, no TensorFlow, safe from a second process and a folder that refuses."""

import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from moco_jax.config import ConfigError
from moco_jax.data import digits, tfds


def test_digits_are_scikit_learns(digits_dir):
    """Both splits hold scikit-learn's rows in their order, grey levels 0..16 spread over 0..255, and their labels."""
    truth = load_digits()
    for split, rows in (("train", slice(0, 1500)), ("test", slice(1500, 1797))):
        source = tfds.open_source("digits", split, data_dir=digits_dir)
        images = np.stack([source[i] for i in range(len(source))])
        assert images.dtype == np.uint8 and images.shape[1:] == (8, 8, 1)
        np.testing.assert_array_equal(images[..., 0], np.floor(truth.images[rows] * 255 / 16))
        np.testing.assert_array_equal(source.labels(), truth.target[rows])
        assert source.classes == 10


def test_digits_need_no_tensorflow_and_no_opencv(tmp_path):
    """With packages of these names that cannot be imported, a fresh process prepares, reads, and prints nothing."""
    for name in ("tensorflow", "cv2"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} was imported')")
    code = f"""
import sys
from moco_jax.data import loader, tfds
source = tfds.open_source("digits", "train", data_dir={str(tmp_path / "data")!r})
assert source[0].shape == (8, 8, 1) and len(source.labels()) == 1500
assert loader.resident(source, 2)["images"].shape == (1500, 8, 8, 1)
assert not {{"tensorflow", "cv2"}} & set(sys.modules)
"""
    path = os.pathsep.join([str(tmp_path), os.getcwd(), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_digits_second_process_keeps_the_first_ones_files(tmp_path, monkeypatch):
    """Where another process finishes in the middle of ours, its files stay, ours go, and nothing temporary is left."""
    real = digits._prepare_in
    inode = []

    def meanwhile_another_finishes(folder):
        real(folder)
        monkeypatch.setattr(digits, "_prepare_in", real)
        digits.prepare(str(tmp_path))
        inode.append(os.stat(tmp_path / "digits" / digits.VERSION).st_ino)

    monkeypatch.setattr(digits, "_prepare_in", meanwhile_another_finishes)
    digits.prepare(str(tmp_path))
    assert os.stat(tmp_path / "digits" / digits.VERSION).st_ino == inode[0]
    assert os.listdir(tmp_path) == ["digits"] and os.listdir(tmp_path / "digits") == [digits.VERSION]
    assert len(tfds.open_source("digits", "test", data_dir=str(tmp_path))) == 297


def test_digits_stopped_half_way_leave_nothing_behind(tmp_path, monkeypatch):
    """An error while preparing leaves no half data set that a later run would take for whole."""

    def fails(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_prepare_in", fails)
    with pytest.raises(KeyboardInterrupt):
        digits.prepare(str(tmp_path))
    assert os.listdir(tmp_path / "digits") == [] and os.listdir(tmp_path) == ["digits"]


def test_digits_are_read_where_nothing_can_be_written(digits_dir, monkeypatch):
    """Once they are there, opening writes nothing: a shared read-only folder serves."""
    for name in ("makedirs", "rename", "mkdir"):
        monkeypatch.setattr(os, name, lambda *a, **k: pytest.fail("wrote"))
    assert len(tfds.open_source("digits", "train", data_dir=digits_dir)) == 1500


def test_digits_refused_by_their_folder(tmp_path, monkeypatch):
    """One clear ConfigError that names data.data_dir, for a path below a file, a read-only folder and a bucket."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data\.data_dir '.*/file/x' cannot be written \(Not a directory\)"):
        tfds.open_source("digits", "train", data_dir=str(tmp_path / "file" / "x"))
    with pytest.raises(ConfigError, match=r"data\.data_dir 'gs://b/x'.*local"):
        tfds.open_source("digits", "train", data_dir="gs://b/x")

    def read_only(*args, **kwargs):  # root may write anywhere, so the refusal is played
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(digits.tempfile, "mkdtemp", read_only)
    with pytest.raises(ConfigError, match=r"data\.data_dir .* cannot be written \(Permission denied\)"):
        tfds.open_source("digits", "train", data_dir=str(tmp_path))
