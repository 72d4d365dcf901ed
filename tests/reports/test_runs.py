"""A run's log as epochs: means weighted by steps, and a log that is cut, repeated or still growing."""

import math

import numpy as np
import pytest

from moco_jax.config import ConfigError
from moco_jax.reports import runs
from tests.reports import written


def test_epoch_means_weight_lines_by_their_steps(tmp_path):
    """First line one step, then four, and a line over the end of an epoch counts for both: by hand for two epochs."""
    workdir = written.folder(tmp_path / "run", written.of(3))
    written.stretch(workdir, 0, 28, loss=float, knn=lambda epoch: epoch / 10)
    run = runs.read(workdir)
    first = (1 * 1 + 3 * 3 + 4 * 6.5 + 2 * 10.5) / 10  # lines end at 1, 4, 8, 12
    second = (2 * 10.5 + 4 * 14.5 + 4 * 18.5) / 10  # at 12, 16, 20
    assert run.loss == pytest.approx({1: first, 2: second})
    assert run.knn_top1 == pytest.approx({1: 10.0, 2: 20.0})
    assert (run.step, run.total, run.steps_per_epoch, run.epochs, run.unreadable) == (28, 30, 10, 2, 0)


def test_a_killed_run_counts_each_step_once_by_its_later_line(tmp_path):
    """Killed after step 26, continued from a checkpoint at step 10 with other losses: the first try is forgotten."""
    workdir = written.folder(tmp_path / "run", written.of(3))
    written.stretch(workdir, 0, 26, loss=lambda step: 1.0, knn=lambda epoch: 0.1)
    written.stretch(workdir, 10, 18, loss=lambda step: 2.0)
    run = runs.read(workdir)
    assert run.loss == {1: 1.0} and run.knn_top1 == pytest.approx({1: 10.0}) and run.step == 16
    written.stretch(workdir, 10, 30, loss=lambda step: 3.0, knn=lambda epoch: 0.3)
    run = runs.read(workdir)
    assert run.loss == {1: 1.0, 2: 3.0, 3: 3.0} and run.knn_top1 == pytest.approx({1: 10.0, 2: 30.0, 3: 30.0})


@pytest.mark.parametrize("end", ['{"step": 24, "lo', '{"step": 24', "", "{"])
def test_half_a_last_line_is_not_there_yet(tmp_path, end):
    """The run is still writing it: no error, and nothing to mention."""
    workdir = written.folder(tmp_path / "run", written.of(3))
    written.stretch(workdir, 0, 20, loss=lambda step: 1.0)
    before = runs.read(workdir)
    written.cut(workdir, end)
    assert runs.read(workdir) == before and before.loss == {1: 1.0, 2: 1.0}


def test_a_line_cut_by_a_kill_swallows_the_next_and_is_counted(tmp_path):
    """The continued run's "start" stands behind the half line; its first step still says where it continued."""
    workdir = written.folder(tmp_path / "run", written.of(3))
    written.stretch(workdir, 0, 16, loss=lambda step: 1.0)
    written.cut(workdir, '{"step": 20, "lo')
    written.stretch(workdir, 10, 20, loss=lambda step: 2.0)
    run = runs.read(workdir)
    assert run.loss == {1: 1.0, 2: 2.0} and run.unreadable == 1


def test_an_epoch_with_too_few_logged_steps_has_no_mean(tmp_path):
    """A run whose older log was lost: of epoch 1 nothing is known, of epoch 2 less than half."""
    workdir = written.folder(tmp_path / "run", written.of(3))
    written.stretch(workdir, 16, 30, loss=lambda step: 1.0)
    assert runs.read(workdir).loss == {3: 1.0}


def test_what_is_no_run_is_named(tmp_path):
    """No folder, no log, a config.json of something else: one line each."""
    with pytest.raises(ConfigError, match="holds no config.json: give the folder of a run"):
        runs.read(tmp_path / "none")
    workdir = written.folder(tmp_path / "run", written.of(3))
    with pytest.raises(ConfigError, match="log.jsonl does not exist: the run has logged nothing yet"):
        runs.read(workdir)
    for text, message in (("{}", "lacks 'config'"), ("{", "cannot be read"), ("[]", "no description of a run")):
        (workdir / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            runs.read(workdir)


@pytest.mark.parametrize("bad", [{15}, set(range(11, 21))])
def test_a_loss_that_was_not_finite_is_no_number(tmp_path, bad):
    """The log holds null for it, as JSON has no nan: its epoch is nan, neither missing nor the mean of the rest.

    A line over the end of epoch 1 that is null because of epoch 2 leaves epoch 1 its other lines.
    """
    workdir = written.folder(tmp_path / "run", written.of(3))
    written.stretch(workdir, 0, 30, loss=lambda step: np.nan if step in bad else 1.0)
    run = runs.read(workdir)
    assert run.loss[1] == run.loss[3] == 1.0 and np.isnan(run.loss[2])


def test_knn_inside_an_epoch_belongs_to_none(tmp_path):
    """Epochs end with their last step; a run of other lengths might evaluate elsewhere."""
    workdir = written.folder(tmp_path / "run", written.of(3))
    written.stretch(workdir, 0, 20, loss=lambda step: 1.0)
    written.cut(workdir, '{"step": 25, "knn_top1": 0.9}\n')
    assert runs.read(workdir).knn_top1 == pytest.approx({1: 50.0, 2: 50.0})


def test_a_line_over_many_epochs_says_nothing_of_any(tmp_path, monkeypatch):
    """log.every_steps far above an epoch: no mean is made up for the epochs inside a line."""
    workdir = written.folder(tmp_path / "run", written.of(6))
    monkeypatch.setattr(written, "EVERY", 30)  # three epochs
    written.stretch(workdir, 0, 60, loss=lambda step: 1.0)
    assert runs.read(workdir).loss == {}
    monkeypatch.setattr(written, "EVERY", 20)
    written.stretch(workdir, 0, 60, loss=lambda step: 1.0)
    assert set(runs.read(workdir).loss) == {1, 2, 3, 4, 5, 6}


def test_chance_is_what_the_run_said_at_its_start(tmp_path):
    """The last time it started; nothing where the beginning of the log is lost."""
    workdir = written.folder(tmp_path / "run", written.of(6))
    written.stretch(workdir, 0, 20, loss=lambda step: 1.0)
    assert runs.read(workdir).chance == pytest.approx(math.log(513))
    with (workdir / "log.jsonl").open("a") as log:
        log.write('{"event": "start", "step": 20, "chance": 2.5}\n')
    assert runs.read(workdir).chance == 2.5
    lines = (workdir / "log.jsonl").read_text().splitlines()
    (workdir / "log.jsonl").write_text("".join(line + "\n" for line in lines if "start" not in line))
    assert runs.read(workdir).chance is None
