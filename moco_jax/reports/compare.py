"""A run beside a reference: where and by how much its learning rate, loss and kNN leave another run's.

A reference is a CSV file with the column `epoch` (1 = after the first epoch) and any of `lr` (the rate used in that
epoch), `train_loss` (mean over the epoch) and `knn_top1` (percent, after the epoch). An empty cell is no value.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from moco_jax import config
from moco_jax.config import ConfigError

Series = Mapping[int, float]  # value by epoch

ROWS = 15  # of the table on the console


class Quantity(NamedTuple):
    """A column of a reference: what it is called, how it is written, and how far from it is far."""

    words: str
    digits: str  # a format
    tolerance: float  # largest difference that counts as within
    why: str


# A reference is one run, so another seed leaves it by chance. Early in the published CIFAR-10 run of 200 epochs, an
# epoch scatters about its neighbours by 0.026 (loss) and 0.55 points (kNN); two runs differ by sqrt(2) times that.
QUANTITIES = {
    "lr": Quantity("learning rate", ".6f", 1e-6, "a schedule has no noise, but the file's last digit is rounded"),
    "train_loss": Quantity("loss", ".4f", 0.1, "nearly three times what chance does to two runs in early epochs"),
    "knn_top1": Quantity("kNN", ".2f", 3.0, "points: nearly four times what chance does to two runs in early epochs"),
}


class Comparison(NamedTuple):
    """One quantity of a run beside the reference's."""

    column: str
    tolerance: float
    ours: Series
    reference: Series

    @property
    def differences(self) -> dict[int, float]:
        """Ours minus the reference's, at the epochs that both have."""
        return {e: self.ours[e] - value for e, value in self.reference.items() if e in self.ours}

    def outside(self) -> list[int]:
        """Epochs at which they differ by more than the tolerance (its last bit aside), or ours is no number."""
        return [e for e, d in self.differences.items() if not abs(d) <= self.tolerance * (1 + 1e-9)]


def read_reference(path: Path) -> dict[str, Series]:
    """The columns of a reference, {column: {epoch: value}}, in the order of QUANTITIES and of epochs.

    Raises ConfigError for a file that is none: empty, other columns, what is no number, an epoch that comes twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from None
    if not rows:
        raise ConfigError(f"{path} is empty: its first line names the columns epoch, {', '.join(QUANTITIES)}")
    names = [name.strip() for name in rows[0]]
    own = [i for i, name in enumerate(names) if not name.endswith(("_reference", "_difference"))]  # `write` adds these
    if len(own) < len(names):
        names, rows = [names[i] for i in own], [[row[i] for i in own if i < len(row)] for row in rows]
    for name in names:
        if name != "epoch" and name not in QUANTITIES:
            raise config.unknown(f"{path}: column", name, ["epoch", *QUANTITIES])
    if "epoch" not in names or len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(
            f"{path} has the columns {', '.join(names)}: give epoch and one or more of {', '.join(QUANTITIES)}"
        )
    if len(rows) == 1:
        raise ConfigError(f"{path} has columns and no epoch")
    columns: dict[str, dict[int, float]] = {name: {} for name in QUANTITIES if name in names}
    for row in rows[1:]:
        _add(columns, dict(zip(names, row, strict=False)), f"{path}: {','.join(row)}", len(row) == len(names))
    if columns.get("knn_top1") and max(columns["knn_top1"].values()) <= 1:
        raise ConfigError(f"{path}: every knn_top1 is 1 or less; it is in percent, 95.3 and not 0.953")
    return {name: dict(sorted(values.items())) for name, values in columns.items()}


def _add(columns: dict[str, dict[int, float]], row: dict[str, str], where: str, complete: bool) -> None:
    """One line of a reference; `where` quotes it."""
    if not complete:
        raise ConfigError(f"{where}: as many values as columns are needed")
    try:
        epoch = int(row["epoch"])
        values = {name: float(row[name]) for name in columns if row[name].strip()}
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    if epoch < 1 or not all(math.isfinite(v) for v in values.values()):
        raise ConfigError(
            f"{where}: epochs count from 1, and values are finite; leave a cell empty where there is none"
        )
    for name, value in values.items():
        if epoch in columns[name]:
            raise ConfigError(f"{where}: epoch {epoch} comes twice")
        columns[name][epoch] = value


def verdict(c: Comparison) -> str:
    """Whether, where and by how much a quantity leaves its reference, in a line or two."""
    words, digits, _, _ = QUANTITIES[c.column]
    differences, outside = c.differences, c.outside()
    if not differences:
        return f"{words}: not compared, no epoch has both values"
    last = max(differences)
    worst = max(differences, key=lambda e: math.inf if math.isnan(differences[e]) else abs(differences[e]))
    most = f"largest difference {differences[worst]:+{digits}} at epoch {worst}"
    if not outside:
        return f"{words}: within {c.tolerance:g} at all {len(differences)} epochs to {last}; {most}"
    text = f"{words}: leaves {c.tolerance:g} first at epoch {outside[0]}"
    within = [e for e in differences if e not in outside]
    if last in outside:
        for_good = min(e for e in outside if e > max(within, default=0))
        text += f", for good at epoch {for_good}"
    else:
        text += f", is back since epoch {min(e for e in within if e > outside[-1])}"
    text += f" (outside at {len(outside)} of {len(differences)} epochs to {last}); {most}"
    return text + (_shifted(c) if last in outside else "")


def _shifted(c: Comparison) -> str:
    """A schedule that is one epoch early or late is one fact, not as many as there are epochs."""
    for shift, words in ((-1, "e - 1"), (1, "e + 1")):
        moved = c._replace(ours={e + shift: v for e, v in c.ours.items()})
        if c.column == "lr" and moved.differences and not moved.outside():
            return f"; at epoch e it is the reference's of epoch {words}"
    return ""


def table(comparisons: Sequence[Comparison]) -> str:
    """Epoch, ours, the reference's and the difference of every quantity: about ROWS rows, `*` where it is outside."""
    shown = [c for c in comparisons if c.differences]
    every = sorted({e for c in shown for e in c.differences})
    full = [e for e in every if all(e in c.differences for c in shown)]  # rows with every value come first
    chosen = _thin(full, ROWS)
    chosen += _thin([e for e in every if e not in full], ROWS - len(chosen))
    head = "epoch" + "".join(f"{QUANTITIES[c.column].words:>14}{'reference':>11}{'difference':>12}" for c in shown)
    rows = [f"{e:5}" + "".join(_cells(c, e) for c in shown) for e in sorted(chosen)]
    return "\n".join(line.rstrip() for line in [head, *rows])


def _cells(c: Comparison, epoch: int) -> str:
    if epoch not in c.differences:
        return f"{'':>37}"
    digits = QUANTITIES[c.column].digits
    mark = "*" if epoch in c.outside() else " "
    return f"{c.ours[epoch]:14{digits}}{c.reference[epoch]:11{digits}}{c.differences[epoch]:+11{digits}}{mark}"


def _thin(epochs: list[int], count: int) -> list[int]:
    """At most `count` of them, evenly, first and last among them."""
    if len(epochs) <= count or count < 2:
        return epochs[: max(count, 0)]
    return [epochs[round(i * (len(epochs) - 1) / (count - 1))] for i in range(count)]


def write(comparisons: Sequence[Comparison], path: Path) -> None:
    """Every epoch that either has, as CSV; a cell is empty where there is no value."""
    epochs = sorted({e for c in comparisons for e in (*c.ours, *c.reference)})
    head = [f"{c.column}{suffix}" for c in comparisons for suffix in ("", "_reference", "_difference")]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", *head])
        for e in epochs:
            cells = [s.get(e, "") for c in comparisons for s in (c.ours, c.reference, c.differences)]
            writer.writerow([e, *cells])
