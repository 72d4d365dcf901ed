"""A table of accuracies with intervals and differences: as text, as CSV and as part of a page."""

import csv
import html as markup
import io
from typing import Any, NamedTuple

FORMAT = 1  # of the JSON; another number where its keys change


class Cell(NamedTuple):
    """A mean share, half its 95 % interval, what the reference row has more ({mean, half_width, draws}); or a text."""

    mean: float | None
    half_width: float | None
    difference: dict[str, Any] | None
    text: str


class Table(NamedTuple):
    """Rows by name, one cell per column."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    caption: str
    notes: list[str]


def to_json(table: Table) -> dict[str, Any]:
    """JSON-ready."""
    rows = [{"name": name, "cells": [cell._asdict() for cell in cells]} for name, cells in table.rows]
    return {"format": FORMAT, "columns": table.columns, "rows": rows, "caption": table.caption, "notes": table.notes}


def from_json(content: dict[str, Any]) -> Table:
    """What `to_json` made."""
    rows = [(row["name"], [Cell(**cell) for cell in row["cells"]]) for row in content["rows"]]
    return Table(content["columns"], rows, content["caption"], content["notes"])


def text(table: Table) -> str:
    """One block of lines for each column, since they would not fit side by side; at last what it comes to."""
    width = max(len(name) for name, _ in table.rows) + 2
    lines = [table.caption]
    for i, column in enumerate(table.columns):
        lines += ["", f"{column:<{width}}{'accuracy':>16}{'difference':>18}"]
        for name, cells in table.rows:
            lines.append(f"{name:<{width}}{_share(cells[i]):>16}{_difference(cells[i]):>18}".rstrip())
    return "\n".join([*lines, "", *answers(table), "", *(f"({note})" for note in table.notes)])


def answers(table: Table) -> list[str]:
    """In how many columns the reference row is better or worse than each other one, by more than the interval."""
    out = []
    for name, cells in table.rows:
        found: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
        for column, cell in zip(table.columns, cells, strict=True):
            if cell.difference is not None:
                found[_verdict(**cell.difference)].append(column)
        counts = [f"{len(columns)} {word}" for word, columns in found.items() if columns]
        if counts:
            worse = f" (worse: {'; '.join(found['worse'])})" if found["worse"] else ""
            out.append(f"against {name}: of {sum(map(len, found.values()))} columns {', '.join(counts)}{worse}")
    return out


def _verdict(mean: float, half_width: float | None, **_: Any) -> str:
    if half_width is None or abs(mean) <= half_width:
        return "undecided"
    return "better" if mean > 0 else "worse"


def csv_text(table: Table) -> str:
    """One line for each cell that holds a number; shares, not percent."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write(["row", "column", "mean", "half_width", "difference", "difference_half_width"])
    for name, cells in table.rows:
        for column, cell in zip(table.columns, cells, strict=True):
            if cell.mean is not None:
                more = cell.difference or {"mean": None, "half_width": None}
                write([name, column, cell.mean, cell.half_width, more["mean"], more["half_width"]])
    return out.getvalue()


def html(table: Table) -> str:
    """A table element, its caption and notes."""

    def cell(cell: Cell) -> str:
        more = _difference(cell)
        return f"<td>{markup.escape(_share(cell))}{f'<br><small>{markup.escape(more)}</small>' if more else ''}</td>"

    head = "".join(f"<th>{markup.escape(c)}</th>" for c in ["", *table.columns])
    body = "".join(f"<tr><th>{markup.escape(n)}</th>{''.join(map(cell, cells))}</tr>" for n, cells in table.rows)
    notes = "".join(f"<p><small>{markup.escape(note)}</small></p>" for note in table.notes)
    short = "".join(f"<p>{markup.escape(line)}</p>" for line in answers(table))
    return f"<table><caption>{markup.escape(table.caption)}</caption><tr>{head}</tr>{body}</table>{short}{notes}"


def _share(cell: Cell) -> str:
    return cell.text if cell.mean is None else f"{100 * cell.mean:.1f}{_half(cell.half_width)} %"


def _difference(cell: Cell) -> str:
    more = cell.difference
    return "" if more is None else f"{100 * more['mean']:+.1f}{_half(more['half_width'])}"


def _half(half_width: float | None) -> str:
    return "" if half_width is None else f" ± {100 * half_width:.1f}"
