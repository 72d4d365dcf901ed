"""What would be converted into what: TFDS's own names and order, and each folder that is refused."""

import json

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from moco_jax.config import ConfigError
from moco_jax.data import shards


def edited(folder, **changes):
    """The data set with keys of its dataset_info.json changed, or taken out where they are None."""
    info = json.loads((folder / "dataset_info.json").read_text()) | changes
    (folder / "dataset_info.json").write_text(json.dumps({k: v for k, v in info.items() if v is not None}))
    return str(folder)


@pytest.mark.parametrize("template", [None, "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "{SPLIT}/{SHARD_INDEX}"])
def test_files_and_their_order_are_those_of_tfds(tfrecords, tmp_path, template):
    """Shard by shard, of all splits, for TFDS's names and for others, before and after."""
    folder = tfrecords({"train": [3, 1, 2], "test": [2]}, template=template)
    plan = shards.planned(str(folder), str(tmp_path / "out"))
    assert plan.name == "small" and plan.target == tmp_path / "out" / "small" / "1.0.0" and plan.records == 8
    builder = read_only_builder.builder_from_directory(folder)
    truth = [i for split in ("train", "test") for i in builder.info.splits[split].file_instructions]
    assert [(str(s.source), s.records) for s in plan.shards] == [(str(i.filename), i.take) for i in truth]
    plan.target.mkdir(parents=True)
    (plan.target / "dataset_info.json").write_text(plan.info)
    (plan.target / "features.json").write_bytes((folder / "features.json").read_bytes())
    builder = read_only_builder.builder_from_directory(plan.target)
    truth = [i.filename for split in ("train", "test") for i in builder.info.splits[split].file_instructions]
    assert [str(s.target) for s in plan.shards] == [str(name) for name in truth]
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD


def test_a_config_is_a_folder_and_all_else_stays(tfrecords, tmp_path):
    """NAME/CONFIG/VERSION; keys that this version does not know are carried over, other formats are not."""
    folder = edited(tfrecords({"train": [1]}), configName="big", citation="us", alternativeFileFormats=["parquet"])
    plan = shards.planned(folder, str(tmp_path / "out"))
    assert plan.name == "small/big" and plan.target == tmp_path / "out" / "small" / "big" / "1.0.0"
    before = json.loads((tmp_path / "small" / "1.0.0" / "dataset_info.json").read_text())
    after = json.loads(plan.info)
    assert after.pop("fileFormat") == "array_record" and before.pop("fileFormat") == "tfrecord"
    assert before.pop("alternativeFileFormats") and after == before
    assert shards.planned(edited(tmp_path / "small" / "1.0.0", fileFormat=None), "out").name == "small/big"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fileFormat": "array_record"}, "is prepared as array_record already"),
        ({"alternativeFileFormats": ["array_record"]}, "is prepared as array_record already"),
        ({"fileFormat": "riegeli"}, "is prepared as riegeli; TFRecord is what can be converted"),
        ({"name": None}, "dataset_info.json is none of TFDS .KeyError: 'name'"),
        ({"splits": [{"name": "train", "numShards": "3"}]}, "is none of TFDS .KeyError: 'shardLengths'"),
        ({"splits": []}, "names no files of records"),
        ({"name": "../up"}, "leads out of its folder: '../up'"),
        ({"version": "1/../../up"}, "leads out of its folder: '1/../../up'"),
        ({"version": "/etc"}, "leads out of its folder: '/etc'"),
        ({"splits": [{"name": "a", "shardLengths": ["1"], "filepathTemplate": "../{SPLIT}"}]}, "leads out of"),
        ({"splits": [{"name": "a", "shardLengths": ["1", "2"]}]}, "2 of 2 files are missing .*small-a.tfrecord-00000-"),
    ],
)  # fmt: skip
def test_what_is_no_data_set_of_tfrecord(tfrecords, tmp_path, changes, words):
    """One line each, before anything is written."""
    folder = edited(tfrecords({"train": [1]}), **changes)
    with pytest.raises(ConfigError, match=words):
        shards.planned(folder, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_other_folders(tfrecords, tmp_path):
    """One above is answered with those below it; none, a bucket, the data set itself, an old one, and no JSON."""
    folder = tfrecords({"train": [1]})
    with pytest.raises(ConfigError, match=rf"{tmp_path} is no data set of TFDS: .* below it: {folder}$"):
        shards.planned(str(tmp_path), "out")
    with pytest.raises(ConfigError, match="gone is no data set of TFDS.*; name the folder NAME/VERSION"):
        shards.planned(str(tmp_path / "gone"), "out")
    with pytest.raises(ConfigError, match="gs://b/x is no folder on a disk"):
        shards.planned("gs://b/x", "out")
    with pytest.raises(ConfigError, match="gs://b/y is no folder on a disk"):
        shards.planned(str(folder), "gs://b/y")
    with pytest.raises(ConfigError, match="itself is where it would go; .*--data_dir=DIR"):
        shards.planned(str(folder), str(tmp_path))
    (folder / "features.json").unlink()
    with pytest.raises(ConfigError, match=r"has no features.json: TFDS before 4\.0"):
        shards.planned(str(folder), "out")
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ConfigError, match="dataset_info.json cannot be read"):
        shards.planned(str(folder), "out")
