"""Data sets that the tests of this folder prepare: the digits, and small odd ones through TFDS itself."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from moco_jax.data import digits


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """A TFDS folder that holds the digits."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    digits.prepare(folder)
    return folder


@pytest.fixture
def prepare(tmp_path, capfd):
    """prepare(name, features, rows, file_format=...) writes a TFDS data set into tmp_path with one split, "train"."""

    def write(name, features, rows, file_format="array_record"):
        class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")
            code_path = None

            def _info(self):
                kinds = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=kinds)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                yield from enumerate(rows)

        Made.name = name
        download = tfds.download.DownloadConfig(try_download_gcs=False)
        Made(data_dir=str(tmp_path), file_format=file_format).download_and_prepare(download_config=download)
        return str(tmp_path)

    return write


@pytest.fixture
def encoded():
    """encoded(array or Pillow image, format) -> bytes."""

    def write(image, form="png"):
        out = io.BytesIO()
        (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, form)
        return out.getvalue()

    return write
