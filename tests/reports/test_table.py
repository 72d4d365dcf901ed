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
