"""A table as text, CSV and HTML, and there and back as JSON."""

import csv
import io

from moco_jax.reports import table
from moco_jax.reports.table import Cell, Table

MADE = Table(
    ["kNN", "fine-tune"],
    [
        (
            "<pixels>",
            [Cell(0.5, 0.02, {"mean": 0.25, "half_width": 0.01, "draws": 3}, ""), Cell(None, None, None, "-")],
        ),
        ("mine", [Cell(0.75, None, None, ""), Cell(0.8, 0.1, None, "")]),
    ],
    "accuracy",
    ["three draws"],
)


def test_text_shows_means_intervals_and_differences():
    """In percent; what is not there has its text."""
    text = table.text(MADE)
    assert "50.0 ± 2.0 %" in text and "+25.0 ± 1.0" in text and "75.0 %" in text and "(three draws)" in text


def test_what_it_comes_to_is_counted():
    """Better, worse or undecided, by the interval: a difference without one decides nothing."""

    def cells(*differences):
        return [
            Cell(0.5, 0.1, None if d is None else {"mean": d, "half_width": 0.1, "draws": 1}, "") for d in differences
        ]

    rows = [("pixels", cells(0.2, -0.2, 0.1, -0.05)), ("mine", cells(*[None] * 4))]
    made = Table(["kNN", "linear", "few", "all"], rows, "accuracy", [])
    assert table.answers(made) == ["against pixels: of 4 columns 1 better, 1 worse, 2 undecided (worse: linear)"]
    assert table.answers(made)[0] in table.text(made) and table.answers(made)[0] in table.html(made)


def test_csv_has_a_line_for_each_number():
    """As shares."""
    rows = list(csv.DictReader(io.StringIO(table.csv_text(MADE))))
    assert [(r["row"], r["column"], r["mean"]) for r in rows] == [
        ("<pixels>", "kNN", "0.5"),
        ("mine", "kNN", "0.75"),
        ("mine", "fine-tune", "0.8"),
    ]
    assert rows[0]["difference_half_width"] == "0.01"


def test_html_is_safe_and_json_comes_back():
    """Names are text, not markup."""
    assert "&lt;pixels&gt;" in table.html(MADE) and "<pixels>" not in table.html(MADE)
    assert table.from_json(table.to_json(MADE)) == MADE
