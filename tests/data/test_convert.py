"""From TFRecord to array_record: the same records, whatever happens on the way, and half of nothing."""

import fcntl
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from moco_jax.config import ConfigError
from moco_jax.data import convert, tfds, tfrecord

SPLITS = {"train": [3, 1, 4], "test": [2]}


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def source(tfrecords):
    return tfrecords(SPLITS)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_the_same_records_in_tfdss_order(source, out):
    """Byte for byte, split by split; slices, images and labels as TFDS has them; names of classes come along."""
    plan, made = convert.convert(str(source), str(out), workers=3)
    assert made and (plan.name, plan.records) == ("small", 10)
    truth = {split: [] for split in SPLITS}
    for shard in plan.shards:
        truth[shard.source.name.split("-")[1].split(".")[0]] += [data for data, _ in tfrecord.read(shard.source)]
    for split, records in truth.items():
        found = tfds.open_source("small", split, data_dir=str(out))
        assert [found.records[i] for i in range(len(found))] == records
    tail = tfds.open_source("small", "train[3:6]+test[1:]", data_dir=str(out))
    assert [tail.records[i] for i in range(len(tail))] == truth["train"][3:6] + truth["test"][1:]
    assert tail.labels().tolist() == [0, 1, 2, 1] and tail.class_names == ["a", "b", "c"]
    np.testing.assert_array_equal(tail[0], np.full((2, 3, 1), 3))
    assert files(out) == sorted(
        [s.target.name for s in plan.shards] + ["dataset_info.json", "features.json", "label.labels.txt"]
    )


def test_again_it_is_there(source, out):
    """Nothing is written a second time; another data set, and other files, at its place are refused and left."""
    convert.convert(str(source), str(out), workers=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not convert.convert(str(source), str(out), workers=1)[1]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    info = out / "small" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("small", "other"))
    with pytest.raises(ConfigError, match="1.0.0 holds another data set; name another folder"):
        convert.convert(str(source), str(out), workers=1)
    info.unlink()
    left = files(out)
    with pytest.raises(ConfigError, match="holds other files, such as features.json; name another folder"):
        convert.convert(str(source), str(out), workers=1)
    assert files(out) == left


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 3])
def test_finished_shards_stay_and_others_are_made_again(source, out, monkeypatch, after):
    """Stopped while a shard is written: nothing is a data set; the next call writes what is missing, and that alone."""
    written, write = [], convert._write

    def stops(shard, part, go_on):
        found = write(shard, part, go_on)
        if len(written) == after:
            raise Stopped
        written.append(shard.target.name)
        return found

    monkeypatch.setattr(convert, "_write", stops)
    with pytest.raises(Stopped):
        convert.convert(str(source), str(out), workers=1)
    assert files(out) == sorted([convert.UNFINISHED, *written]) and len(written) == after
    assert tfds.found(str(out)) == {"digits"}
    with pytest.raises(ConfigError, match="unknown"):
        tfds.open_source("small", "train", data_dir=str(out))
    monkeypatch.setattr(convert, "_write", lambda *args: written.append(args[0].target.name) or write(*args))
    assert convert.convert(str(source), str(out), workers=1)[1]
    assert len(written) == len({*written}) == 4
    assert tfds.open_source("small", "train", data_dir=str(out)).labels().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_stopped_at_the_last_rename(source, out, monkeypatch):
    """With everything there but dataset_info.json it is no data set; the next call has nothing but that to do."""
    replace = convert.os.replace

    def stops(path, to):
        if to.name == convert.INFO:
            raise Stopped
        replace(path, to)

    monkeypatch.setattr(convert.os, "replace", stops)
    with pytest.raises(Stopped):
        convert.convert(str(source), str(out), workers=1)
    assert (out / "small" / "1.0.0" / "features.json").exists() and tfds.found(str(out)) == {"digits"}
    with pytest.raises(OSError, match="Could not read dataset info"):
        tfds.open_source("small", "train", data_dir=str(out))
    monkeypatch.undo()
    assert convert.convert(str(source), str(out), workers=1)[1]
    assert len(tfds.open_source("small", "train", data_dir=str(out)).labels()) == 8


def test_a_finished_shard_that_was_cut_off_is_made_again(source, out, monkeypatch):
    """Between two calls a disk may lose something: the number of records of what is kept is looked at."""
    monkeypatch.setattr(convert, "_complete", lambda plan: None)
    plan, _ = convert.convert(str(source), str(out), workers=1)
    whole = {shard.target: shard.target.read_bytes() for shard in plan.shards}
    plan.shards[0].target.write_bytes(whole[plan.shards[0].target][:-70000])
    plan.shards[1].target.write_bytes(b"")
    monkeypatch.undo()
    convert.convert(str(source), str(out), workers=1)
    assert {shard.target: shard.target.read_bytes() for shard in plan.shards} == whole


PROGRAM = """
import sys, time
from moco_jax.data import convert
write = convert._write
def stays(shard, part, go_on):
    write(shard, part, go_on)
    print("written", flush=True)
    time.sleep(600)
convert._write = lambda shard, *rest: (stays if "test" in shard.source.name else write)(shard, *rest)
convert.convert(*sys.argv[1:], workers=1)
"""


@pytest.mark.slow
def test_killed_in_the_middle(source, out):
    """By SIGKILL, with shards finished and one half-written: no data set, then the whole one; a lock goes with it."""
    command = [sys.executable, "-c", PROGRAM, str(source), str(out)]
    part = out / "small" / "1.0.0" / ("small-test.array_record-00000-of-00001" + convert.PART)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n" and part.exists()
        with pytest.raises(ConfigError, match="another process is converting into .*1.0.0"):
            convert.convert(str(source), str(out), workers=1)
        process.kill()
    assert part.exists() and tfds.found(str(out)) == {"digits"}
    part.write_bytes(part.read_bytes() + b"junk")
    assert convert.convert(str(source), str(out), workers=2)[1]
    assert not part.exists() and len(tfds.open_source("small", "train+test", data_dir=str(out)).labels()) == 10


def test_an_unfinished_conversion_of_another_data_set(source, out, tfrecords):
    """Is not gone on with; one whose mark was half written is."""
    place = out / "small" / "1.0.0"
    place.mkdir(parents=True)
    mark = place / convert.UNFINISHED
    mark.write_text("{another")
    with pytest.raises(ConfigError, match="holds an unfinished conversion of another data set; remove it, or"):
        convert.convert(str(source), str(out), workers=1)
    assert mark.read_text() == "{another"
    mark.write_text(convert.planned(str(source), str(out)).info[:20])
    assert convert.convert(str(source), str(out), workers=1)[1]


def test_a_damaged_record_is_named(source, out):
    """With its file and number, at once; nothing half-written is left, and with the file mended it goes on."""
    damaged = source / "small-train.tfrecord-00002-of-00003"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"small-train\.tfrecord-00002-of-00003: record 3 is damaged"):
        convert.convert(str(source), str(out), workers=2)
    assert not [name for name in files(out) if name.endswith(convert.PART)] and tfds.found(str(out)) == {"digits"}
    damaged.write_bytes(whole)
    assert convert.convert(str(source), str(out), workers=2)[1]


def test_more_or_fewer_records_than_tfds_says(source, out):
    """A file that was cut between two records, or has one too many."""
    shard = source / "small-train.tfrecord-00000-of-00003"
    whole = shard.read_bytes()
    first = whole[: 16 + int.from_bytes(whole[:8], "little")]
    for data, count in ((first, 1), (whole + first, 4), (b"", 0)):
        shard.write_bytes(data)
        with pytest.raises(ConfigError, match=rf"holds {count} records, and dataset_info.json says 3"):
            convert.convert(str(source), str(out), workers=1)


def test_what_is_read_back_is_compared(source, out, monkeypatch):
    """A record that the writer changed, lost, or gave another place is found before the shard has its name."""
    for changed in ([b"x", b"b", b"c"], [b"a", b"b"], [b"a", b"c", b"b"], [b"a", b"b", b"c", b"d"]):
        part = out / "x.part"
        out.mkdir(exist_ok=True)
        writer = convert.array_record_module.ArrayRecordWriter(str(part), convert.OPTIONS)
        for record in changed:
            writer.write(record)
        writer.close()
        with pytest.raises(ConfigError, match=r"x\.part: record \d is not what was written"):
            convert._verify(part, [tfrecord.masked(record) for record in (b"a", b"b", b"c")])
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ConfigError, match="record 0 is not what was written"):
        convert._verify(part, [tfrecord.masked(b"a")])
    shutil.rmtree(out)
    read = tfrecord.read
    monkeypatch.setattr(tfrecord, "read", lambda path: ((data, 7) for data, _ in read(path)))
    with pytest.raises(ConfigError, match=r"\.part: record 0 is not what was written; look at this disk, and run"):
        convert.convert(str(source), str(out), workers=1)
    assert files(out) == [convert.UNFINISHED]


def test_a_full_disk(source, out, monkeypatch):
    """Seen before the start where the disk has too little, and in the middle where others filled it."""
    usage = shutil.disk_usage(source)
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(ConfigError, match=r"has 0\.0 GB free, and 0\.0 GB are needed; make room"):
        convert.convert(str(source), str(out), workers=1)
    monkeypatch.undo()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # what the mark needs, and less than a shard
    try:
        with pytest.raises(
            ConfigError, match=r"\.part cannot be written: .*File too large.*; make room, and run the same"
        ):
            convert.convert(str(source), str(out), workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(out) == [convert.UNFINISHED]
    plan, made = convert.convert(str(source), str(out), workers=1)
    assert made and all(0 <= convert._needed(s) - s.target.stat().st_size < 2000 for s in plan.shards)


def test_a_place_that_cannot_be_written(source, tmp_path):
    """Below a file."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/small/1\.0\.0 cannot be written .Not a directory"):
        convert.convert(str(source), str(tmp_path / "file"), workers=1)


def test_an_old_lock_is_none(source, out):
    """A mark without a process at work on it is gone on with."""
    place = out / "small" / "1.0.0"
    place.mkdir(parents=True)
    with (place / convert.UNFINISHED).open("a") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process"):
            convert.convert(str(source), str(out), workers=1)
    assert convert.convert(str(source), str(out), workers=1)[1]


@pytest.mark.parametrize("where", ["before the lock", "before the mark"])
def test_another_process_ends_just_before_ours_begins(source, out, monkeypatch, where):
    """Between our first look and our lock: it is there then, nothing is written, and no mark is left."""
    look, lock = convert._is_there, fcntl.flock

    def another():
        monkeypatch.undo()
        assert convert.convert(str(source), str(out), workers=1)[1]

    if where == "before the lock":
        monkeypatch.setattr(fcntl, "flock", lambda mark, how: (another(), lock(mark, how)))
    else:
        monkeypatch.setattr(convert, "_is_there", lambda plan: (look(plan), another())[0])
    plan, made = convert.convert(str(source), str(out), workers=1)
    assert not made and convert.UNFINISHED not in files(out)
    assert (plan.target / convert.INFO).read_text() == plan.info
