"""Damaged checkpoints and failing saves as `train` meets them; the loop itself is not run here."""

import contextlib
import json
import os
import signal
import time

import pytest

from moco_jax import stopping
from moco_jax.checkpoints import verified
from moco_jax.checkpoints.store import Damaged, Store
from moco_jax.config import ConfigError
from moco_jax.evaluation import loading
from tests.checkpoints.test_damage import DAMAGES
from tests.checkpoints.test_folder import failing
from tests.test_resume_position import SMALL, TOTAL, calls, go

__all__ = ["calls"]  # a fixture


def log_of(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["a leaf", "the data cut", "the state gone", "half of it", "no digests", "all"])
def test_training_goes_on_from_the_newest_whole_checkpoint(calls, tmp_path, capsys, name):
    """Also after the last step: one line on the console and in the log; the damaged one lies beside."""
    calls["saves"] = (4, TOTAL)
    go(tmp_path)
    DAMAGES[name][0](tmp_path / "checkpoints" / str(TOTAL))
    calls["saves"] = (TOTAL,)
    result = go(tmp_path)
    assert (result.checkpoint, result.was_complete) == (TOTAL, False)
    assert [call[:2] for call in calls["loops"]] == [(0, 0), (4, 4)]
    said = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert (
        len(said) == 1 and f"and was moved to {tmp_path}/checkpoints/damaged/{TOTAL}; continuing from step 4" in said[0]
    )
    (start,) = [r for r in log_of(tmp_path) if r.get("event") == "start" and r["step"] == 4]
    assert sum("is damaged" in warning for warning in start["warnings"]) == 1
    assert go(tmp_path).was_complete


@pytest.mark.parametrize("name", ["the state gone", "half of it"])
def test_nothing_is_trained_where_no_checkpoint_is_whole(calls, tmp_path, name):
    """However often it is called: a run is not begun anew over one that was damaged."""
    calls["saves"] = (4, 9)
    go(tmp_path)
    for step in (4, 9):
        DAMAGES[name][0](tmp_path / "checkpoints" / str(step))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"no checkpoint in .* is whole \(9: .*; 4: .*\): nothing was trained"):
            go(tmp_path)
    assert len(calls["loops"]) == 1
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("[!.]*")) == ["4", "9"]


def test_an_evaluation_refuses_and_moves_nothing(calls, tmp_path):
    """It may be somebody else's folder."""
    calls["saves"] = (4, 9)
    go(tmp_path)
    DAMAGES["no digests"][0](tmp_path / "checkpoints/9")
    with pytest.raises(Damaged, match="9 is damaged .*move that folder elsewhere to use step 4"):
        loading.load(tmp_path, encoder=SMALL)
    (tmp_path / "checkpoints/9").rename(tmp_path / "elsewhere")
    assert loading.load(tmp_path, encoder=SMALL).step == 4


def test_saves_that_fail_stop_no_training(calls, tmp_path, monkeypatch, capsys):
    """A warning each on the console and in the log; those before and after are whole."""
    failing(monkeypatch, 8, 12)
    calls["saves"] = (4, 8, 12, 16, TOTAL)
    assert go(tmp_path).checkpoint == TOTAL
    heard = [r["warning"] for r in log_of(tmp_path) if r.get("event") == "warning"]
    said = capsys.readouterr().out
    for step, text in zip((8, 12), heard, strict=True):
        assert f"/checkpoints/{step} could not be written" in text and "the newest one is step 4, and whole" in text
        assert f"warning: {text}" in said
    with Store(tmp_path / "checkpoints") as store:
        assert store.whole() == (TOTAL, []) and store.holds(16)


def test_a_last_save_that_fails_ends_the_run_with_an_error(calls, tmp_path, monkeypatch):
    """Which names the newest good step, from which the same call goes on."""
    failing(monkeypatch, TOTAL)
    calls["saves"] = (4, TOTAL)
    with pytest.raises(OSError, match=rf"/{TOTAL} could not be written .* the newest one is step 4, and whole"):
        go(tmp_path)
    failing(monkeypatch)
    calls["saves"] = (TOTAL,)
    assert go(tmp_path).checkpoint == TOTAL and calls["loops"][-1][:2] == (4, 4)


@pytest.mark.parametrize("stop", [None, stopping.Stopped(signal.SIGTERM)], ids=["at the end", "after a signal"])
def test_a_signal_while_the_last_checkpoint_is_written_is_too_late(calls, tmp_path, monkeypatch, stop):
    """Schedulers repeat themselves: until it is on disk SIGTERM is noted, and ends no process."""
    told, write = [], verified.write
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))

    def slow(*given):
        time.sleep(0.2)  # by then the loop is left
        os.kill(os.getpid(), signal.SIGTERM)
        write(*given)

    monkeypatch.setattr(verified, "write", slow)
    calls["saves"], calls["error"] = (9,), stop
    try:
        with pytest.raises(SystemExit) if stop else contextlib.nullcontext():
            go(tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not told and (tmp_path / "checkpoints/9").is_dir()
