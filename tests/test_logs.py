"""The log: JSON lines that any reader takes, rates that count training alone, nothing from silent processes."""

import errno
import io
import json
import os

import pytest

from moco_jax import logs


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_writes_json_lines_and_one_console_line(tmp_path, capsys):
    """Step, metrics, rate; the console line shows how far, loss, pretext accuracy and the time left."""
    with logs.RunLog(tmp_path, total_steps=100, first_step=0, batch_size=8) as log:
        log.metrics(10, {"loss": 2.5, "pretext_accuracy": 0.25})
    (record,) = lines(tmp_path)
    assert record["step"] == 10 and record["loss"] == 2.5 and record["images_per_second"] > 0
    text = capsys.readouterr().out
    assert "step 10/100" in text and "loss 2.500" in text and "pretext 25.0%" in text and "left" in text


def test_a_number_that_json_cannot_hold_is_null(tmp_path):
    """NaN in a JSON line breaks strict readers."""
    with logs.RunLog(tmp_path, total_steps=1, first_step=0, batch_size=1) as log:
        log.write({"loss": float("nan")})
    assert lines(tmp_path) == [{"loss": None}]


def test_a_resumed_log_goes_on_behind(tmp_path):
    """Nothing that was logged is lost."""
    for step in (1, 2):
        with logs.RunLog(tmp_path, total_steps=2, first_step=step, batch_size=1) as log:
            log.write({"step": step})
    assert [r["step"] for r in lines(tmp_path)] == [1, 2]


def test_silent_log_writes_and_says_nothing(tmp_path, capsys):
    """Other processes share the folder."""
    with logs.RunLog(tmp_path, total_steps=2, first_step=0, batch_size=1, silent=True) as log:
        log.say("hello")
        log.metrics(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


def test_excluded_time_does_not_slow_the_rate(tmp_path, monkeypatch):
    """An evaluation of 90 s between two logs 100 s apart: 10 s of training."""
    clock = iter([0.0, 100.0])
    monkeypatch.setattr(logs.time, "perf_counter", lambda: next(clock))
    with logs.RunLog(tmp_path, total_steps=50, first_step=0, batch_size=4) as log:
        log.exclude(90.0)
        log.metrics(10, {"loss": 1.0})
    assert lines(tmp_path)[0]["images_per_second"] == pytest.approx(4.0)


class Disk:
    """A file on a disk that is full for some writes, and takes a few bytes at a time of the others."""

    name = "log.jsonl"

    def __init__(self, full):
        self.full, self.content = full, b""

    def write(self, data):
        self.full -= 1
        if self.full >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.content += data[:7]
        return len(data[:7])

    def flush(self):
        pass

    def close(self):
        pass


def test_a_full_disk_stops_no_training_and_loses_no_line(tmp_path, capsys):
    """Said once, on the console; lines that wait are written whole and in order when there is space."""
    disk = Disk(full=3)
    with logs.RunLog(tmp_path, total_steps=9, first_step=0, batch_size=1) as log:
        log._file = disk
        for step in range(5):
            log.write({"step": step})
    assert [json.loads(line) for line in disk.content.splitlines()] == [{"step": step} for step in range(5)]
    said = capsys.readouterr().out
    assert said.count("warning: log.jsonl cannot be written (No space left on device); training goes on") == 1


def test_what_waits_for_space_is_written_at_the_end(tmp_path):
    """There may be space again by then."""
    disk = Disk(full=2)
    with logs.RunLog(tmp_path, total_steps=9, first_step=0, batch_size=1) as log:
        log._file = disk
        log.write({"step": 1})
        log.write({"step": 2})
        assert disk.content == b""
    assert [json.loads(line) for line in disk.content.splitlines()] == [{"step": 1}, {"step": 2}]


def test_a_console_on_a_full_disk_stops_no_training(tmp_path, monkeypatch):
    """`train.py > console.txt`."""

    class Console:
        error = OSError(errno.ENOSPC, "No space left on device")

        def write(self, text):
            raise self.error

    console = Console()
    monkeypatch.setattr("sys.stdout", console)
    with logs.RunLog(tmp_path, total_steps=9, first_step=0, batch_size=1) as log:
        log.metrics(1, {"loss": 2.0})
        console.error = BrokenPipeError()  # of no file
        log.say("more")
    assert [r["step"] for r in lines(tmp_path)] == [1]


def test_a_name_that_is_no_text_is_shown(tmp_path, monkeypatch):
    """Of a file, as Linux has them; on a console of ASCII as well."""
    for encoding, shown in (("utf-8", "\\udcff é"), ("ascii", "\\udcff \\xe9")):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr("sys.stdout", out)
        with logs.RunLog(tmp_path, total_steps=9, first_step=0, batch_size=1) as log:
            log.warn(1, "\udcff é")
        assert out.buffer.getvalue().decode(encoding) == f"warning: {shown}\n"
    assert lines(tmp_path)[0]["warning"] == "\udcff é"


def test_a_reader_that_has_gone_stops_no_training(tmp_path, monkeypatch):
    """`train.py | tee`, and Ctrl-C ends tee first: what is said from then on goes nowhere, at the end of Python too."""
    end, begin = os.pipe()
    with os.fdopen(begin, "w") as console, logs.RunLog(tmp_path, total_steps=9, first_step=0, batch_size=1) as log:
        monkeypatch.setattr("sys.stdout", console)
        log.say("read")
        os.close(end)
        log.say("not read")
        log.metrics(1, {"loss": 2.0})
        console.write("also where others say it")
        console.flush()
    assert [r["step"] for r in lines(tmp_path)] == [1]


def test_a_warning_is_for_people_and_for_the_file(tmp_path, capsys):
    """Beside the numbers of no step."""
    with logs.RunLog(tmp_path, total_steps=9, first_step=0, batch_size=1) as log:
        log.warn(4, "the disk is full")
    assert lines(tmp_path) == [{"event": "warning", "step": 4, "warning": "the disk is full"}]
    assert capsys.readouterr().out == "warning: the disk is full\n"


def test_a_line_that_a_kill_cut_short_takes_no_other_with_it(tmp_path):
    """The next start begins a line of its own; an empty log, and one that ends well, are gone on with as they are."""
    for before, after in (('{"step": 1}\n{"ste', '{"step": 1}\n{"ste\n{"step": 2}\n'), ("", '{"step": 2}\n')):
        for text in (before, after):
            (tmp_path / "log.jsonl").write_text(text)
            with logs.RunLog(tmp_path, total_steps=3, first_step=0, batch_size=1) as log:
                log.write({"step": 2})
            whole = after if text is before else after + '{"step": 2}\n'
            assert (tmp_path / "log.jsonl").read_text() == whole


def test_waiting_for_images_is_said_once_with_what_to_do(tmp_path, capsys, monkeypatch):
    """A share of the time in every line; above a tenth a warning with both speeds, in words and in the file, once."""
    now = [100.0]
    monkeypatch.setattr(logs.time, "perf_counter", lambda: now[0])
    with logs.RunLog(tmp_path, total_steps=40, first_step=0, batch_size=8, advice=": raise data.workers") as log:
        for step, waited in ((10, 2.9), (20, 5.0), (30, 4.0)):
            log.waited(waited / 2)
            log.waited(waited / 2)
            now[0] += 10.0
            log.metrics(step, {"loss": 1.0})
        log.waited(3.0)
        log.restart(30)  # a compile, say
        now[0] += 10.0
        log.metrics(40, {"loss": 1.0})
    found = lines(tmp_path)
    assert [r["waiting"] for r in found if "loss" in r] == pytest.approx([0.29, 0.5, 0.4, 0.0])
    warnings = [r["warning"] for r in found if r.get("event") == "warning"]
    assert warnings == [
        "50% of the time went by waiting for images: the host makes 8 images/s ready, and the device could take 16: "
        "raise data.workers"
    ]
    said = capsys.readouterr().out
    assert said.count("warning: ") == 1 and "8 images/s  waits 50%" in said
