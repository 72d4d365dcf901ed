"""Paths of this machine stay what they are; a log in segments is one log. Buckets: `test_remote.py`."""

from pathlib import Path, PosixPath

import pytest

from moco_jax import places
from moco_jax.logs import RunLog, says


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, as a list of one."""
    now = [100.0]
    monkeypatch.setattr(places.time, "monotonic", lambda: now[0])
    return now


def parts(folder):
    return {p.name: p.read_text() for p in sorted(folder.iterdir())}


def test_a_path_of_this_machine_is_pathlibs(tmp_path):
    """As it was written: not resolved, not made."""
    for path in ("runs/digits", str(tmp_path / "a"), tmp_path / "b", "~/runs", "a:b/c"):
        assert places.at(path) == Path(path) and type(places.at(path)) is PosixPath and not places.is_remote(path)
    assert list(tmp_path.iterdir()) == []


def test_segments_are_written_at_once_then_by_the_clock(tmp_path, clock):
    """The first line is there; later ones after 30 s, or when they are asked for; nothing new is not written again."""
    segments = places.Segments(tmp_path)
    for second, line in ((100, b"a\n"), (110, b"b\n"), (129, b"c\n")):
        clock[0] = second
        assert segments.write(line) == 2
    assert parts(tmp_path) == {"00000001.jsonl": "a\n"}
    clock[0] = 131
    segments.write(b"d\n")
    assert parts(tmp_path) == {"00000001.jsonl": "a\nb\nc\nd\n"}
    segments.write(b"e\n")
    segments.flush()
    assert parts(tmp_path) == {"00000001.jsonl": "a\nb\nc\nd\ne\n"}
    (tmp_path / "00000001.jsonl").unlink()
    segments.flush()
    assert parts(tmp_path) == {}


def test_a_segment_is_bounded_and_a_start_begins_another(tmp_path, clock, monkeypatch):
    """So that what is written anew stays small; numbers go on behind the highest."""
    monkeypatch.setattr(places, "SIZE", 5)
    segments = places.Segments(tmp_path)
    for line in (b"one\n", b"two\n", b"three\n"):
        segments.write(line)
    assert parts(tmp_path) == {"00000001.jsonl": "one\ntwo\n", "00000002.jsonl": "three\n"}
    segments.flush()
    places.Segments(tmp_path).write(b"four\n")
    assert list(parts(tmp_path)) == ["00000001.jsonl", "00000002.jsonl", "00000003.jsonl"]


def test_a_write_that_fails_loses_no_line_and_is_not_tried_at_once(tmp_path, clock, monkeypatch, capsys):
    """Said on the console; 30 s later all of them are there, once and in order, and at the end as well."""
    tried = []

    def failing(path, text):
        tried.append(clock[0])
        raise OSError("out of reach")

    monkeypatch.setattr("moco_jax.logs._opened", lambda workdir: places.Segments(workdir / "log"))
    monkeypatch.setattr(places, "write", failing)
    with RunLog(tmp_path, total_steps=9, first_step=0, batch_size=1) as log:
        for step in range(3):
            log.write({"step": step})
        assert tried == [100.0] and capsys.readouterr().out.count("log cannot be written (out of reach); training") == 1
        monkeypatch.undo()
        (tmp_path / "log").mkdir()
    assert parts(tmp_path / "log") == {"00000001.jsonl": '{"step": 0}\n{"step": 1}\n{"step": 2}\n'}


def test_a_log_that_was_copied_between_bucket_and_disk_is_read_whole(tmp_path):
    """Segments of the bucket, then what was written here; a folder without either has none."""
    with pytest.raises(FileNotFoundError):
        places.read_log(tmp_path)
    assert says(tmp_path, "evaluated", 1) is None
    (tmp_path / "log").mkdir()
    (tmp_path / "log/00000002.jsonl").write_text('{"event": "evaluated", "step": 1}\n')
    (tmp_path / "log/00000001.jsonl").write_text("1\n")
    (tmp_path / "log.jsonl").write_text("3\n")
    assert places.read_log(tmp_path) == '1\n{"event": "evaluated", "step": 1}\n3\n'
    assert says(tmp_path, "evaluated", 1) is True and says(tmp_path, "evaluated", 2) is False
