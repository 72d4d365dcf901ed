"""The curves of one or several runs, as PNG: matplotlib's Agg canvas without pyplot, so that nothing is global."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from moco_jax.reports import verdict
from moco_jax.reports.runs import Run

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # Okabe and Ito's
SHARES = (0, 25, 50, 75, 100)  # per cent of the queue's age at which key consistency is logged


class Shown(NamedTuple):
    """A run as curves need it."""

    label: str
    run: Run
    rate: Mapping[int, float]  # learning rate by epoch, from the config: no log holds it


class Picture(NamedTuple):
    """A PNG with its name, title, what it shows to those who cannot see it, and a line below it."""

    name: str
    title: str
    alt: str
    note: str
    png: bytes


def new_figure(width: float, height: float) -> Any:
    """A figure that belongs to nobody: inches, at 110 dots each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Any) -> bytes:
    """The figure as PNG bytes; no date inside, so that equal pictures are equal files."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


class Axis(NamedTuple):
    """What runs are laid along: epochs, or steps where their epochs are of unequal length."""

    words: str
    per: int  # steps for each unit


def axis_of(shown: Sequence[Shown]) -> Axis:
    """The axis on which these runs can be compared."""
    lengths = {s.run.steps_per_epoch for s in shown}
    return Axis("epoch", lengths.pop()) if len(lengths) == 1 else Axis("step", 1)


def pictures(shown: Sequence[Shown]) -> tuple[list[Picture], dict[str, str]]:
    """The curves that can be drawn, and {title: why} for those that cannot."""
    made, missing, axis = [], {}, axis_of(shown)
    for draw in (_loss, _knn, _rate, _rank, _similarity, _consistency):
        picture = draw(shown, axis)
        if isinstance(picture, Picture):
            made.append(picture)
        else:
            missing[picture[0]] = picture[1]
    return made, missing


Drawn = Picture | tuple[str, str]


def _loss(shown: Sequence[Shown], axis: Axis) -> Drawn:
    curves = [_along(axis, s, "loss", skip_first=True) for s in shown]

    def also(panel: Any) -> None:
        lines = {round(c, 6): i for i, s in reversed([*enumerate(shown)]) if (c := s.run.chance) is not None}
        for value, i in lines.items():
            colour = "0.4" if len(lines) == 1 else _colour(i)
            panel.axhline(value, color=colour, linestyle="--", linewidth=1, label=f"chance: {value:.2f}")

    note = "Without the first step, which is near 0 where two encoders are equal. Above chance soon after is normal."
    return _lines(shown, axis, "loss", "Loss", "loss", curves, note, also)


def _knn(shown: Sequence[Shown], axis: Axis) -> Drawn:
    curves = [{e: 100 * v for e, v in _along(axis, s, "knn_top1").items()} for s in shown]
    return _lines(shown, axis, "knn", "kNN accuracy", "%", curves, "On labelled images that training never sees.")


def _rate(shown: Sequence[Shown], axis: Axis) -> Drawn:
    curves = [{e * s.run.steps_per_epoch / axis.per: r for e, r in s.rate.items()} for s in shown]
    note = "Computed from the config, for every epoch begun."
    return _lines(shown, axis, "learning_rate", "Learning rate", "rate", curves, note)


def _rank(shown: Sequence[Shown], axis: Axis) -> Drawn:
    curves = [_along(axis, s, "effective_rank") for s in shown]

    def also(panel: Any) -> None:
        panel.axhline(verdict.RANK, color="0.4", linestyle="--", linewidth=1, label=f"collapsed below {verdict.RANK:g}")

    note = "How many directions the keys of a batch use: 1 when collapsed to a line."
    return _lines(shown, axis, "rank", "Effective rank", "directions", curves, note, also)


def _similarity(shown: Sequence[Shown], axis: Axis) -> Drawn:
    title = "Similarity of positives and negatives"
    figure, panel = _panel(axis.words, "cosine")
    said = []
    for i, s in enumerate(shown):
        for name, style in (("positive", "-"), ("negative", ":")):
            curve = _along(axis, s, f"{name}_similarity", skip_first=True)
            label = f"{s.label}: {name}" if len(shown) > 1 else name
            panel.plot([*curve], [*curve.values()], style, color=_colour(i), label=label, marker=_marker(curve))
            said += [f"{label} {_ends(curve, axis)}"] if curve else []
    note = "Cosines of a query with its key, and with its negatives on average. Both at 1 is a collapse."
    return _finished(figure, panel, "similarity", title, said, note)


def _consistency(shown: Sequence[Shown], axis: Axis) -> Drawn:
    title = "Key consistency by age"
    figure, panel = _panel("age of the stored key in steps", "cosine with today's key")
    said = []
    for i, s in enumerate(shown):
        steps = sorted(s.run.series.get("key_cosine_100", {}))
        # One run: five moments of it, the later the darker. Several: each one's last.
        chosen = steps[-1:] if len(shown) > 1 else [steps[j] for j in _spread(len(steps), 5)]
        for j, step in enumerate(chosen):
            points = [(_at(s.run, f"key_age_{p}", step), _at(s.run, f"key_cosine_{p}", step)) for p in SHARES]
            points = [p for p in points if not any(map(math.isnan, p))]
            label = f"{s.label}, step {step}" if len(shown) > 1 else f"step {step}"
            alpha = 0.25 + 0.75 * (j + 1) / len(chosen)
            panel.plot(*zip(*points, strict=True), color=_colour(i), alpha=alpha, marker="o", markersize=3, label=label)
            said += (
                [f"{label}: {points[0][1]:.2f} for the youngest, {points[-1][1]:.2f} for the oldest"] if points else []
            )
    note = "Images behind stored keys, encoded again by today's encoder of keys: near 1 they are as good as new."
    return _finished(figure, panel, "consistency", title, said, note)


def _lines(
    shown: Sequence[Shown],
    axis: Axis,
    name: str,
    title: str,
    unit: str,
    curves: Sequence[Mapping[float, float]],
    note: str,
    also: Callable[[Any], None] | None = None,
) -> Drawn:
    """One curve for each run."""
    figure, panel = _panel(axis.words, unit)
    for i, (s, curve) in enumerate(zip(shown, curves, strict=True)):
        label = s.label if len(shown) > 1 else None
        if curve:
            panel.plot([*curve], [*curve.values()], color=_colour(i), label=label, marker=_marker(curve))
    if also is not None:
        also(panel)
    said = [f"{s.label} {_ends(c, axis)}" for s, c in zip(shown, curves, strict=True) if c]
    return _finished(figure, panel, name, title, said, note)


def _panel(x: str, y: str) -> tuple[Any, Any]:
    figure = new_figure(5.6, 3.2)
    panel = figure.subplots()
    panel.set(xlabel=x, ylabel=y)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def _finished(figure: Any, panel: Any, name: str, title: str, said: Sequence[str], note: str) -> Drawn:
    if not said:
        return title, "the log holds no number of it"
    panel.set_title(title, fontsize="medium", loc="left")
    if panel.get_legend_handles_labels()[1]:
        panel.legend(fontsize="small", framealpha=0.8)
    return Picture(name, title, f"{title}. {'; '.join(said)}.", note, png_of(figure))


def _along(axis: Axis, s: Shown, name: str, *, skip_first: bool = False) -> dict[float, float]:
    """{place on the axis: value}; not finite ones are left out, as is the run's first step where asked."""
    values = s.run.series.get(name, {})
    skip = 1 if skip_first and any(step > 1 for step in values) else 0
    return {step / axis.per: v for step, v in sorted(values.items()) if step > skip and math.isfinite(v)}


def _at(run: Run, name: str, step: int) -> float:
    return run.series.get(name, {}).get(step, math.nan)


def _ends(curve: Mapping[float, float], axis: Axis) -> str:
    first, last = min(curve), max(curve)
    return f"from {curve[first]:.3g} to {curve[last]:.3g} at {axis.words} {last:.6g}"


def _spread(count: int, most: int) -> list[int]:
    """At most `most` places among `count`, evenly, first and last among them."""
    return sorted({round(j * (count - 1) / (most - 1)) for j in range(most)}) if count else []


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _marker(curve: Mapping[float, float]) -> str | None:
    """Few points are dots too: one alone would be no line."""
    return "." if len(curve) < 12 else None
