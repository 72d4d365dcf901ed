"""`moco-jax compare`: the published CIFAR-10 run as the reference of runs that were never made."""

import csv
import re
from pathlib import Path

import pytest

from moco_jax import cli
from tests.reports import written

PUBLISHED = Path(__file__).parents[1] / "parity" / "data" / "cifar10_moco_asym200.csv"
ROWS = {int(r["epoch"]): r for r in csv.DictReader(PUBLISHED.open())}


def run(tmp_path, *, epochs=200, off=lambda epoch: 0.0, knn_every=1):
    """A run whose loss and kNN are the published ones, plus `off` on the loss and ten times that in points."""
    workdir = written.folder(tmp_path / "run", written.of(200))
    at = lambda step: (step - 1) // written.PER_EPOCH + 1  # noqa: E731
    written.stretch(
        workdir,
        0,
        epochs * written.PER_EPOCH,
        loss=lambda step: float(ROWS[at(step)]["train_loss"]) + off(at(step)),
        knn=lambda e: float(ROWS[e]["knn_top1"]) / 100 + off(e) / 10,
        knn_every=knn_every,
    )
    return str(workdir)


def said(capsys, *argv):
    """Exit status and the lines after the table, by their first word."""
    capsys.readouterr()
    status = cli.main(["compare", *argv])
    out = capsys.readouterr().out
    return status, {line.split(":")[0]: line for line in out.split("\n\n")[-1].splitlines()}, out


def test_a_run_equal_to_the_reference_differs_in_the_learning_rate_alone(tmp_path, capsys):
    """The notebook counts epochs from 1: its rate at an epoch is ours one later, at most 4.7e-4 apart."""
    workdir = run(tmp_path)
    status, lines, out = said(capsys, workdir, str(PUBLISHED))
    assert status == 1
    assert "leaves 1e-06 first at epoch 1, for good at epoch 1 (outside at 200 of 200" in lines["learning rate"]
    assert "at epoch e it is the reference's of epoch e - 1" in lines["learning rate"]
    assert "within 0.1 at all 200 epochs" in lines["loss"] and "within 3 at all 200 epochs" in lines["kNN"]
    assert lines[workdir] == f"{workdir}: 200 of 200 epochs, step 2000/2000"
    assert re.search(r"^ +1 +0\.060000 +0\.059996 +\+0\.000004\*", out, re.MULTILINE)
    assert said(capsys, workdir, str(PUBLISHED), "--lr_tolerance=5e-4")[0] == 0


def test_a_run_off_from_epoch_20_on(tmp_path, capsys):
    """Loss .3 and kNN 3 points higher: the first leaves its tolerance at epoch 20, the second another that is given."""
    flags = ("--lr_tolerance=1", "--knn_tolerance=2.5")
    status, lines, _ = said(capsys, run(tmp_path, off=lambda e: 0.3 * (e >= 20)), str(PUBLISHED), *flags)
    assert status == 1
    assert "for good at epoch 20 (outside at 181 of 200 epochs to 200); largest difference +0.3" in lines["loss"]
    assert "leaves 2.5 first at epoch 20, for good at epoch 20" in lines["kNN"]


def test_a_run_still_going_with_knn_each_ten_epochs(tmp_path, capsys):
    """In epoch 37 of 200, the last line half written; kNN is compared at 10, 20 and 30; the file holds every epoch."""
    workdir = run(tmp_path, epochs=37, knn_every=10)
    written.cut(Path(workdir), '{"step": 37')
    output = tmp_path / "all.csv"
    flags = ("--lr_tolerance=5e-4", f"--output={output}")
    status, lines, _ = said(capsys, workdir, str(PUBLISHED), *flags)
    assert status == 0 and lines[workdir].endswith("36 of 200 epochs, step 368/2000")
    assert "at all 36 epochs to 36" in lines["loss"]
    assert "at all 3 epochs to 30" in lines["kNN"]
    rows = list(csv.DictReader(output.open()))
    assert len(rows) == 200 and [r["epoch"] for r in rows if r["knn_top1"]] == ["10", "20", "30"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: RUN is missing: usage: moco-jax compare RUN REFERENCE.csv"),
        (["a"], "error: REFERENCE.csv is missing: usage"),
        (["a", "b", "c"], "error: unexpected argument 'c': usage"),
        (["a", "b", "--los_tolerance=1"], "error: flag 'los_tolerance' is unknown; did you mean 'loss_tolerance'"),
        (["a", "b", "--output"], "error: write --output=VALUE, with an equals sign"),
        (["a", "b", "--lr_tolerance=low"], "error: --lr_tolerance must be a number, not 'low'"),
        (["a", "none.csv"], "error: none.csv cannot be read as CSV: No such file or directory"),
        (["none", str(PUBLISHED)], "error: none holds no config.json"),
    ],
)
def test_an_error_of_the_users_is_one_line_and_status_two(argv, message, capsys):
    """As in diff, since 1 means that the run left its reference."""
    assert cli.main(["compare", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message) and captured.err.count("\n") == 1


def test_a_run_in_its_first_epoch_is_told_to_wait(tmp_path, capsys):
    """Status 0 would say that it is within."""
    workdir = written.folder(tmp_path / "run", written.of(200))
    written.stretch(workdir, 0, 8, loss=float)
    assert cli.main(["compare", str(workdir), str(PUBLISHED)]) == 2
    assert "has done 8 of the 10 steps of its first epoch: wait for it" in capsys.readouterr().err


def test_help_says_what_the_status_means(capsys):
    """And every flag with its default and the reason for it."""
    with pytest.raises(SystemExit) as done:
        cli.main(["compare", "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert "0 within the tolerances" in text and "--loss_tolerance=" in text and "(default 0.1)" in text


def test_nothing_in_common_is_no_agreement(tmp_path, capsys):
    """A column that could not be compared is said, and the status is 2; 0 and 1 are kept for what was compared."""
    reference = tmp_path / "late.csv"
    reference.write_text("epoch,train_loss,knn_top1\n1,6.9569,\n150,,80\n")
    workdir = run(tmp_path, epochs=3)
    status, lines, _ = said(capsys, workdir, str(reference))
    assert status == 2 and "kNN: not compared" in lines["kNN"] and "within 0.1 at all 1 epochs" in lines["loss"]
    reference.write_text("epoch,train_loss,knn_top1\n1,5.0,\n150,,80\n")
    assert said(capsys, workdir, str(reference))[0] == 1


def test_a_run_that_diverged_is_outside(tmp_path, capsys):
    """A loss that is no number from epoch 2 on leaves every tolerance."""
    reference = tmp_path / "loss.csv"
    reference.write_text("epoch,train_loss\n1,6.9569\n2,7.2502\n3,7.2901\n")
    workdir = run(tmp_path, epochs=3, off=lambda epoch: float("nan") if epoch > 1 else 0.0)
    status, lines, _ = said(capsys, workdir, str(reference))
    assert status == 1 and "for good at epoch 2 (outside at 2 of 3" in lines["loss"] and "nan" in lines["loss"]


def test_what_is_read_is_not_written_over(tmp_path, capsys):
    """Neither the reference nor the run's own files; a tolerance is a number, and a folder must be there first."""
    reference = tmp_path / "loss.csv"
    reference.write_text("epoch,train_loss\n1,6.9569\n")
    workdir = run(tmp_path, epochs=1)
    before = Path(workdir, "log.jsonl").read_text()
    for output in (reference, Path(workdir, "log.jsonl"), tmp_path / "nowhere" / "out.csv"):
        assert cli.main(["compare", workdir, str(reference), f"--output={output}"]) == 2
    for tolerance in ("nan", "inf", "-1"):
        assert cli.main(["compare", workdir, str(reference), f"--loss_tolerance={tolerance}"]) == 2
    assert reference.read_text().startswith("epoch,train_loss") and Path(workdir, "log.jsonl").read_text() == before
    assert capsys.readouterr().err.count("error: ") == 6
