"""A comparison says where a run leaves its reference, for good or not, and by how much."""

import csv

import pytest

from moco_jax.config import ConfigError
from moco_jax.reports import compare
from moco_jax.reports.compare import Comparison

EPOCHS = range(1, 201)
REFERENCE = {e: 3.0 - e / 100 for e in EPOCHS}


def loss(change, *, tolerance=0.1, epochs=EPOCHS):
    return Comparison("train_loss", tolerance, {e: REFERENCE[e] + change(e) for e in epochs}, REFERENCE)


@pytest.mark.parametrize(
    ("change", "outside", "said"),
    [
        (lambda e: 0.0, 0, "loss: within 0.1 at all 200 epochs to 200; largest difference +0.0000 at epoch 1"),
        (lambda e: -0.1, 0, "within 0.1 at all 200 epochs"),  # the tolerance itself is within
        (
            lambda e: 0.2 if e >= 20 else 0.0,
            181,
            "leaves 0.1 first at epoch 20, for good at epoch 20 (outside at 181 of 200 epochs to 200); "
            "largest difference +0.2000 at epoch",
        ),
        (lambda e: -0.5 if e == 7 or e > 90 else 0.0, 111, "first at epoch 7, for good at epoch 91 (outside at 111"),
        (
            lambda e: 0.3 if e in (5, 9) else 0.0,
            2,
            "leaves 0.1 first at epoch 5, is back since epoch 10 (outside at 2 of 200 epochs to 200); largest",
        ),
    ],
)
def test_a_verdict_says_where_first_where_for_good_and_how_far(change, outside, said):
    """Equal, at the limit, off from epoch 20 on, off once and later for good, off and back."""
    c = loss(change)
    assert len(c.outside()) == outside
    assert said in compare.verdict(c)


def test_a_run_still_going_is_compared_as_far_as_it_is():
    """Epochs that only the reference has are no difference; none in common is said."""
    assert "at all 30 epochs to 30" in compare.verdict(loss(lambda e: 0.0, epochs=range(1, 31)))
    assert compare.verdict(loss(lambda e: 9.0, epochs=())) == "loss: not compared, no epoch has both values"


def test_a_learning_rate_one_epoch_off_is_told_as_one_fact():
    """The notebook counts epochs from 1 and we from 0: our rate at epoch e is the notebook's at e - 1."""
    theirs = {e: 0.06 / 200 * (200 - e) for e in EPOCHS}
    late = Comparison("lr", 1e-6, {e: theirs.get(e - 1, 0.06) for e in EPOCHS}, theirs)
    assert "for good at epoch 1 " in compare.verdict(late) and "the reference's of epoch e - 1" in compare.verdict(late)
    early = Comparison("lr", 1e-6, {e: theirs.get(e + 1, -0.0003) for e in EPOCHS}, theirs)
    assert "the reference's of epoch e + 1" in compare.verdict(early)
    other = Comparison("lr", 1e-6, dict.fromkeys(EPOCHS, 0.5), theirs)
    assert "the reference's of" not in compare.verdict(other)


def test_the_table_is_thin_and_prefers_epochs_with_every_value():
    """Fifteen rows of 200, first and last among them; with kNN each 10 epochs these are all there."""
    knn = {e: 30.0 + e / 4 for e in EPOCHS}
    ours = Comparison("knn_top1", 3.0, {e: knn[e] + (5.0 if e >= 100 else 1.0) for e in EPOCHS if e % 20 == 0}, knn)
    head, *rows = compare.table([loss(lambda e: 0.0), ours]).splitlines()
    assert head.split() == ["epoch", "loss", "reference", "difference", "kNN", "reference", "difference"]
    epochs = [int(row.split()[0]) for row in rows]
    assert len(rows) == compare.ROWS and epochs == sorted(epochs) and (epochs[0], epochs[-1]) == (1, 200)
    full = {int(row.split()[0]): row for row in rows if len(row.split()) == 7}
    assert sorted(full) == list(range(20, 201, 20))
    assert full[80].split() == ["80", "2.2000", "2.2000", "+0.0000", "51.00", "50.00", "+1.00"]
    assert full[100].split()[-1] == "+5.00*"


def test_a_reference_may_lack_columns_and_cells(tmp_path):
    """Any order, kNN each second epoch, a byte order mark and blank lines."""
    path = tmp_path / "r.csv"
    path.write_text("\ufeffknn_top1, epoch\n\n50,2\n,1\n", encoding="utf-8")
    assert compare.read_reference(path) == {"knn_top1": {2: 50.0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: its first line names the columns epoch, lr, train_loss, knn_top1"),
        ("\n\n", "is empty"),
        ("epoch,loss\n1,2\n", "column 'loss' is unknown; did you mean 'train_loss'"),
        ("epoch\n1\n", "has the columns epoch: give epoch and one or more of"),
        ("lr\n0.1\n", "has the columns lr: give epoch"),
        ("epoch,lr,lr\n1,2,3\n", "has the columns epoch, lr, lr"),
        ("epoch,lr\n", "has columns and no epoch"),
        ("epoch,lr\n1,fast\n", "1,fast: could not convert string to float: 'fast'"),
        ("epoch,lr\n1.5,2\n", "1.5,2: invalid literal for int"),
        ("epoch,lr\n0,2\n", "0,2: epochs count from 1"),
        ("epoch,lr\n1,nan\n", "values are finite"),
        ("epoch,lr\n1\n", "as many values as columns"),
        ("epoch,lr\n1,2\n1,3\n", "1,3: epoch 1 comes twice"),
    ],
)
def test_a_file_that_is_no_reference_is_refused_in_one_line(tmp_path, text, message):
    """What, where, and what is wanted."""
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        compare.read_reference(path)
    assert "\n" not in str(error.value)


def test_every_epoch_goes_into_the_file(tmp_path):
    """All of both, with full digits; empty where a side has none."""
    compare.write([loss(lambda e: 1 / 3, epochs=(1, 2))], tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == 200 and list(rows[0]) == [
        "epoch",
        "train_loss",
        "train_loss_reference",
        "train_loss_difference",
    ]
    assert float(rows[1]["train_loss_difference"]) == pytest.approx(1 / 3, abs=1e-15)
    assert rows[2]["train_loss"] == "" and rows[2]["train_loss_difference"] == ""


def test_knn_as_a_share_is_refused(tmp_path):
    """The log holds shares, a reference percent: one taken from a log would be 95 points off in every row."""
    path = tmp_path / "reference.csv"
    path.write_text("epoch,knn_top1\n1,0.93\n2,0.95\n")
    with pytest.raises(ConfigError, match="in percent, 95.3 and not 0.953"):
        compare.read_reference(path)


def test_what_compare_wrote_is_a_reference(tmp_path):
    """The columns of the run itself; those of its reference and the differences are left out."""
    c = loss(lambda e: 0.05, epochs=range(1, 31))
    compare.write([c], tmp_path / "run.csv")
    again = compare.read_reference(tmp_path / "run.csv")
    assert set(again) == {"train_loss"} and again["train_loss"] == pytest.approx(c.ours)
