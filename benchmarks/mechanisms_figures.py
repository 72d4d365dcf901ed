"""Tables and pictures of what benchmarks/mechanisms.py found.

    python -m benchmarks.mechanisms_figures --input=benchmarks/results/mechanisms.jsonl --pictures=docs

Prints rows for docs/mechanisms.md, then mean, deviation and seeds of every setting, and draws mechanisms_size.png,
mechanisms_momentum.png and mechanisms_temperature.png. Reads lines alone: it can be run while the benchmark goes on.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import mechanisms
from moco_jax.cli import flags

NAMED = {
    "input": ("benchmarks/results/mechanisms.jsonl", "what the benchmark wrote"),
    "pictures": (None, "folder for the pictures"),
}
LABELS = {"end_to_end": "end to end", "memory_bank": "memory bank", "moco": "MoCo"}
COLOURS = {"end_to_end": "tab:green", "memory_bank": "tab:orange", "moco": "tab:blue"}

Lines = list[dict[str, Any]]


def read(path: Path) -> Lines:
    """Every line, the last one of a run that has several."""
    return list({(line := json.loads(text))["run"]: line for text in path.read_text().splitlines()}.values())


def setting(line: dict[str, Any]) -> str:
    """The name of a run without its seed."""
    return str(line["run"].rsplit(",seed=", 1)[0])


def summary(lines: Lines) -> dict[str, dict[str, Any]]:
    """{setting: {mean, std, seeds: {seed: kNN in percent}, loss, chance, ...}}; std over seeds, None for one."""
    out: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(map(setting, lines)):
        found = sorted((line for line in lines if setting(line) == name), key=lambda line: line["seed"])
        knn = [100 * line["knn_top1"] for line in found]
        out[name] = {
            "mean": float(np.mean(knn)),
            "std": float(np.std(knn, ddof=1)) if len(knn) > 1 else None,
            "seeds": {line["seed"]: round(value, 2) for line, value in zip(found, knn, strict=True)},
            "loss": float(np.mean([line["loss"] for line in found])),
            "chance": found[0]["chance"],
            "verdicts": sorted({line["verdict"] for line in found}),
        }
    return out


def along(lines: Lines, part: str, mechanism: str, key: str) -> dict[float, list[float]]:
    """{value of a key: kNN in percent by seed} of the runs of a part that are done."""
    names = {run.name: run.changes[key] for run in mechanisms.parts()[part] if run.mechanism == mechanism}
    out: dict[float, list[float]] = {}
    for line in lines:
        if line["run"] in names:
            out.setdefault(float(names[line["run"]]), []).append(100 * line["knn_top1"])
    return dict(sorted(out.items()))


def tables(lines: Lines) -> list[str]:
    """The rows of the tables of docs/mechanisms.md: kNN in percent, mean and standard deviation over seeds."""
    knn = {line["run"]: 100 * line["knn_top1"] for line in lines}

    def cells(runs: list[mechanisms.Run]) -> list[str]:
        found: dict[str, list[float]] = {}  # by setting; seeds of tuning are none of `runs`
        for run in runs:
            found.setdefault(run.name.rsplit(",seed=", 1)[0], []).extend([knn[run.name]] if run.name in knn else [])
        return [f"{np.mean(v):.1f} ± {np.std(v, ddof=1):.1f}" if len(v) > 1 else "-" for v in found.values()]

    def row(*values: Any) -> str:
        return f"| {' | '.join(map(str, values))} |"

    parts = mechanisms.parts()
    sized = {name: cells([r for r in parts["sizes"] if r.mechanism == name]) for name in LABELS}
    rows = [row(f"{k:,}", *(sized[name][i] for name in LABELS)) for i, k in enumerate(mechanisms.SIZES)]
    rows.append(row("kNN", *cells(parts["momentum"])))
    rows.append(row("kNN", *cells(parts["temperature"])))
    trained = mechanisms.TUNED["moco"]["moco.temperature"]
    for label, shares, i in (
        ("gradient on the hardest 1 %, trained with that T", hardest(lines), 0),
        ("... of that on the query's class", hardest(lines), 1),
        (f"gradient on the hardest 1 %, trained with T = {trained:g}", hardest(lines, trained), 0),
    ):
        rows.append(row(label, *(f"{100 * own[i]:.0f} %" for own in shares.values())))
    middle = {name: cells([r for r in parts["sizes"] if r.mechanism == name])[1] for name in LABELS}
    rows.append(row("MoCo, K = 256, shuffle on / off", middle["moco"], *cells(parts["shuffle"])))
    rows.append(row("MoCo, K = 256, trained / rate 0", middle["moco"], *cells(parts["untrained"])))
    rows.append(row("end to end, G = 256, one encoder / two", middle["end_to_end"], *cells(parts["encoders"])))
    for name in mechanisms.NCE_TUNED:
        own = [r for r in parts["nce"] if r.mechanism == name]
        rows.append(row(f"{LABELS[name]}, K = 256, InfoNCE / NCE", middle[name], *cells(own)))
    return rows


def hardest(lines: Lines, trained: float | None = None) -> dict[float, list[float]]:
    """{T: [share of the gradient on the hardest 1 %, share of that on the query's class]}, means over seeds.

    Of the networks that were trained with each T, or of those that were `trained` with one.
    """
    names = {run.name: run.changes["moco.temperature"] for run in mechanisms.parts()["temperature"]}
    found: dict[float, list[list[float]]] = {}
    for line in lines:
        own = names.get(line["run"])
        for t in mechanisms.TEMPERATURES if own is not None else ():
            if trained == own or (trained is None and t == own):
                found.setdefault(t, []).append(line["hard_negatives"][str(t)])
    return {t: np.mean(found[t], axis=0).tolist() for t in sorted(found)}


def _spread(panel: Any, points: dict[float, list[float]], label: str, colour: str) -> None:
    """The mean over seeds as a line, each seed as a dot."""
    panel.plot([*points], [np.mean(v) for v in points.values()], color=colour, label=label, marker="o")
    for x, values in points.items():
        panel.plot([x] * len(values), values, color=colour, marker=".", linestyle="", alpha=0.5)


def _size(lines: Lines, panels: Any) -> None:
    for name in LABELS:
        key = next(iter(mechanisms.dictionary(name, 0)))
        _spread(panels[0], along(lines, "sizes", name, key), LABELS[name], COLOURS[name])
    panels[0].set(xscale="log", xlabel="dictionary: K, end to end the batch", ylabel="kNN, %", title="size")
    panels[0].set_xticks(mechanisms.SIZES, [str(k) for k in mechanisms.SIZES])
    largest = {run.name for run in mechanisms.parts()["sizes"] if max(mechanisms.SIZES) in run.changes.values()}
    for line in lines:
        name = line["mechanism"]
        if line["run"] in largest and name != "end_to_end":  # which stores nothing
            age, cosine = np.array(line["key_cosine_half_way"]).T
            panels[1].plot(age, cosine, color=COLOURS[name], marker=".", label=LABELS[name])
    panels[1].set(
        xlabel="age of a stored key, steps",
        ylabel="cosine with today's",
        title=f"consistency half way, K = {max(mechanisms.SIZES):,}",
    )


def _momentum(lines: Lines, panels: Any) -> None:
    points = along(lines, "momentum", "moco", "moco.momentum")
    places = {m: i for i, m in enumerate(mechanisms.MOMENTA)}
    _spread(panels[0], {places[m]: v for m, v in points.items()}, "MoCo", COLOURS["moco"])
    panels[0].set_xticks([*places.values()], [f"{m:g}" for m in places])
    panels[0].set(xlabel="momentum m", ylabel="kNN, %", title="momentum, K = 1,024")
    names = {run.name: run.changes["moco.momentum"] for run in mechanisms.parts()["momentum"]}
    for line in lines:
        if line["run"] in names:
            age, cosine = np.array(line["key_cosine_half_way"]).T
            colour = f"C{places[names[line['run']]]}"
            panels[1].plot(age, cosine, color=colour, marker=".", label=f"m = {names[line['run']]:g}")
    panels[1].set(
        xlabel="age of a stored key, steps", ylabel="cosine with today's", title="consistency of the queue half way"
    )


def _temperature(lines: Lines, panels: Any) -> None:
    points = along(lines, "temperature", "moco", "moco.temperature")
    _spread(panels[0], points, "MoCo", COLOURS["moco"])
    panels[0].set(xscale="log", xlabel="temperature T", ylabel="kNN, %", title="temperature, K = 256")
    own = hardest(lines)
    for i, label in enumerate(("gradient on the hardest 1 %", "... of that on the query's class")):
        panels[1].plot([*own], [100 * found[i] for found in own.values()], marker="o", label=label)
    alike = np.mean([100 * line["hard_negatives"]["alike"] for line in lines if "hard_negatives" in line])
    panels[1].axhline(alike, color="gray", linestyle=":", label="all negatives of the query's class")
    panels[1].set(xscale="log", xlabel="temperature T", ylabel="%", title="where the gradient goes")
    for panel in panels:
        panel.set_xticks(mechanisms.TEMPERATURES, [f"{t:g}" for t in mechanisms.TEMPERATURES])


def draw(lines: Lines, path: Path, content: Callable[[Lines, Any], None]) -> None:
    """Two panels in a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    content(lines, panels)
    for panel in panels:
        panel.grid(alpha=0.3)
        handles = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))  # one for each label
        panel.legend(handles.values(), handles.keys())
        panel.minorticks_off()
    figure.savefig(path, dpi=110)


def main() -> int:
    """Print the table, draw the pictures."""
    _, named = flags.parse(sys.argv[1:], page="cifar10_small", named=NAMED, usage=__doc__ or "")
    lines = read(Path(named["input"]))
    print(*tables(lines), "", sep="\n")
    for name, found in summary(lines).items():
        std = "-" if found["std"] is None else f"{found['std']:.2f}"
        seeds = ", ".join(f"{value:.2f}" for value in found["seeds"].values())
        print(f"{found['mean']:6.2f}  std {std:>5}  ({seeds})  loss {found['loss']:.2f}/{found['chance']:.2f}  {name}")
    if named["pictures"]:
        for part, content in {"size": _size, "momentum": _momentum, "temperature": _temperature}.items():
            draw(lines, Path(named["pictures"]) / f"mechanisms_{part}.png", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
