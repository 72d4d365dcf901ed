"""What batch norm leaks without a shuffle: the same run with shuffle off and on, watched by accuracy, kNN and alarm.

    python -m benchmarks.bn_leak --output=benchmarks/results/bn_leak.json --picture=docs/bn_leak.png

Digits with small batch-norm groups (SETTINGS; --config.KEY=VALUE overrides them). Every number comes from the runs' own
log.jsonl. --output and --picture are written when all seeds are done; runs that are complete are read, not rerun.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax import config
from moco_jax.cli import flags

SETTINGS = (
    "--config.bn.group_size=4",  # small groups leak most
    "--config.model.width=16",
    "--config.optimizer.learning_rate=0.12",
    "--config.train.epochs=80",
    "--config.eval.every_epochs=4",
    "--config.leak.every_epochs=8",
)
BLOCKS = {"off": 0, "on": 128}  # shuffle.block
NAMED = {
    "seeds": ("0,1,2", "training seeds"),
    "workdir": ("runs/bn_leak", "a run per seed and setting goes here"),
    "output": (None, "file for the JSON, besides stdout"),
    "picture": (None, "file for the picture"),
}
CURVES = ("pretext_accuracy", "knn_top1", "pretext_own", "pretext_reshuffled", "leak")


def curves(workdir: Path) -> dict[str, Any]:
    """{name: [[step, value], ...]} of a run's log, and the steps of the alarm's warnings."""
    records = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    out: dict[str, Any] = {}
    for name in CURVES:
        out[name] = [[r["step"], r[name]] for r in records if name in r]
    out["warned"] = [r["step"] for r in records if "warning" in r]
    return out


def measure(page: Any, seeds: list[int], workdir: Path) -> dict[str, list[dict[str, Any]]]:
    """The curves of every seed, shuffle off and on."""
    from moco_jax import pretrain

    out: dict[str, list[dict[str, Any]]] = {name: [] for name in BLOCKS}
    for page.seed in seeds:
        for name, page.shuffle.block in BLOCKS.items():
            run = workdir / f"{name}-{page.seed}"
            pretrain.train(config.read(page), run)
            out[name].append(curves(run))
    return out


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Per setting, by seed: last values, the range of the alarm's leak over the run, the step of its first warning."""
    out: dict[str, Any] = {}
    for name, seeds in runs.items():
        out[name] = {curve: [s[curve][-1][1] for s in seeds] for curve in CURVES}
        out[name]["largest_leak"] = [max(value for _, value in s["leak"]) for s in seeds]
        out[name]["smallest_leak"] = [min(value for _, value in s["leak"]) for s in seeds]
        out[name]["first_warning"] = [min(s["warned"], default=None) for s in seeds]
    return out


def draw(runs: dict[str, list[dict[str, Any]]], path: str) -> None:
    """Two panels, pretext accuracy and kNN against the step: a thin line per seed, a thick one for their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    labels = {"off": ("shuffle off", "tab:red"), "on": ("shuffle on", "tab:blue")}
    titles = {"pretext_accuracy": "pretext accuracy (training)", "knn_top1": "kNN accuracy (held-out images)"}
    for panel, (curve, title) in zip(panels, titles.items(), strict=True):
        for name, (label, colour) in labels.items():
            # From the second log on: against the queue's random start every first step is right.
            values = np.array([[p for p in s[curve] if p[0] > 1] for s in runs[name]])  # (seeds, points, 2)
            for step, value in np.moveaxis(values, 2, 1):
                panel.plot(step, 100 * value, color=colour, linewidth=0.7, alpha=0.4)
            panel.plot(values[0, :, 0], 100 * values[:, :, 1].mean(0), color=colour, linewidth=2, label=label)
        panel.set(xlabel="step", ylabel="%", title=title)
        panel.grid(alpha=0.3)
    panels[0].set_ylim(0, 100)
    panels[0].legend()
    figure.savefig(path, dpi=110)


def main() -> int:
    """Train, read, summarise, draw."""
    argv = [*SETTINGS, *sys.argv[1:]]
    page, named = flags.parse(argv, page="digits", named=NAMED, usage=__doc__ or "")
    flags.prepare_environment()
    seeds = [int(s) for s in named["seeds"].split(",")]
    runs = measure(page, seeds, Path(named["workdir"]))
    settings = [s.removeprefix("--config.") for s in argv if s.startswith("--config.")]  # the later one counts
    short = {"settings": settings, "seeds": seeds, "last": summary(runs)}
    print(json.dumps(short, indent=2))
    if named["output"]:
        Path(named["output"]).write_text(json.dumps(short | {"runs": runs}) + "\n")
    if named["picture"]:
        draw(runs, named["picture"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
