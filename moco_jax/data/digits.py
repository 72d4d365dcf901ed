"""scikit-learn's handwritten digits as a TFDS data set, prepared without TensorFlow: 1500 + 297 images."""

import contextlib
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from moco_jax.config import ConfigError

VERSION = "1.0.0"
SPLITS = {"train": range(1500), "test": range(1500, 1797)}  # rows of load_digits()


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 gray images of ten handwritten digits (the test part of UCI's optical recognition of handwritten digits)."""

    VERSION = tfds.core.Version(VERSION)
    code_path = None  # TFDS would look for files beside the code with importlib_resources, which it does not install

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")
        features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=10)})
        return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {name: self._generate_examples(rows) for name, rows in SPLITS.items()}

    def _generate_examples(self, rows: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits  # a second to import

        digits = load_digits()
        for row in rows:
            png = io.BytesIO()  # TFDS encodes bytes as they are; arrays would need TensorFlow
            Image.fromarray(np.uint8(digits.images[row] * 255 / 16)).save(png, "png")
            yield row, {"image": png.getvalue(), "label": int(digits.target[row])}


def prepare(data_dir: str) -> None:
    """Write the digits to `data_dir` unless they are there (two seconds); several processes may do it at once.

    TFDS alone fails then: its rename meets the other process's folder, and equal `random.seed`s even share the
    temporary one. Here each process has a folder of its own, and whoever comes second drops its copy.
    Raises ConfigError where `data_dir` cannot be written.
    """
    final = pathlib.Path(data_dir, "digits", VERSION)
    if final.is_dir():
        return
    if "://" in str(data_dir):
        raise ConfigError(f"data.data_dir {data_dir!r}: digits are written to a local folder only; name one")
    try:
        os.makedirs(final.parent, exist_ok=True)
        mine = tempfile.mkdtemp(prefix=".digits-", dir=data_dir)
    except OSError as error:
        raise _unwritable(data_dir, error) from error
    try:
        _prepare_in(mine)
        os.rename(pathlib.Path(mine, "digits", VERSION), final)
    except OSError as error:
        if not final.is_dir():  # otherwise another process was first
            raise _unwritable(data_dir, error) from error
    finally:
        shutil.rmtree(mine, ignore_errors=True)


def _unwritable(data_dir: str, error: OSError) -> ConfigError:
    reason = error.strerror or error
    return ConfigError(
        f"data.data_dir {str(data_dir)!r} cannot be written ({reason}), and digits are prepared there; name another"
    )


def _prepare_in(folder: str) -> None:
    """Let TFDS write the data set; its progress bars are silenced: they outlast the work."""
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Digits(data_dir=folder, file_format="array_record").download_and_prepare(download_config=config)
