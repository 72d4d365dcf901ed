"""Data sets that the tests of this folder prepare: the digits, and small odd ones through TFDS itself."""

import io
import itertools
import json

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


@pytest.fixture
def tfrecords(tmp_path):
    """tfrecords({"train": [3, 1]}) -> folder of a data set "small" of TFRecord files, by a writer that is not ours.

    Record i of a split is a 2x3 gray image of value i with the label i modulo 3.
    """

    def write(splits, template=None):
        from tensorboardX.record_writer import RecordWriter

        label = tfds.features.ClassLabel(names=["a", "b", "c"])
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(2, 3, 1)), "label": label})
        folder = tmp_path / "small" / "1.0.0"
        folder.mkdir(parents=True)
        features.save_config(folder)
        pattern = template or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        for split, lengths in splits.items():
            names = tfds.core.ShardedFileTemplate(folder, pattern, "small", split, "tfrecord")
            values = iter(range(sum(lengths)))
            for path, length in zip(names.sharded_filepaths(len(lengths)), lengths, strict=True):
                path.parent.mkdir(exist_ok=True)
                writer = RecordWriter(str(path))
                for i in itertools.islice(values, length):
                    png = io.BytesIO()
                    Image.fromarray(np.full((2, 3), i, np.uint8)).save(png, "png")
                    row = features.encode_example({"image": png.getvalue(), "label": i % 3})
                    writer.write(features.serialize_example(row))
                writer.close()
        infos = [{"name": n, "numBytes": "1", "shardLengths": [str(x) for x in s]} for n, s in splits.items()]
        if template:
            infos = [info | {"filepathTemplate": template} for info in infos]
        info = {"name": "small", "version": "1.0.0", "fileFormat": "tfrecord", "splits": infos}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        return folder

    return write
