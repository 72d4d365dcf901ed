"""Runs made to fail in each way, and healthy ones, with their verdicts: what the limits of reports/verdict.py rest on.

    python -m benchmarks.verdicts --output=benchmarks/results/verdicts.json --logs=tests/reports/logs

Digits, CASES with their settings over SETTINGS (none of them for the default page); --config.KEY=VALUE overrides them
all. About ten minutes a seed on two cores. Runs that are complete are read, not rerun; --output and --logs are written
when all are done. --logs holds the logs of the first seed, thinned: what the tests read.
"""

import json
import sys
from pathlib import Path
from typing import Any

from moco_jax import config
from moco_jax.cli import flags
from moco_jax.reports import runs, verdict

SETTINGS = ("model.width=16", "bn.group_size=8", "log.every_steps=9", "train.epochs=20")
SETTINGS += ("eval.every_epochs=4", "leak.every_epochs=4")


def _few(images: int, batch: int, queue: int, epochs: int) -> tuple[str, ...]:
    every = f"every_epochs={epochs // 4}"
    split = f"data.split=train[:{images}]"
    return (
        split,
        f"batch_size={batch}",
        f"queue.size={queue}",
        f"train.epochs={epochs}",
        f"eval.{every}",
        f"leak.{every}",
    )


# What a run is meant to be: (kind, settings); 180 steps each, the default page 270.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "default": (verdict.LEARNING, ("log.every_steps=9",)),
    "small": (verdict.LEARNING, SETTINGS),
    "small-short-queue": (verdict.LEARNING, (*SETTINGS, "queue.size=128")),
    "small-300-images": (verdict.LEARNING, (*SETTINGS, *_few(300, 64, 64, 45))),
    "no-momentum": (verdict.COLLAPSED, (*SETTINGS, "moco.momentum=0")),
    "rate-30": (verdict.COLLAPSED, (*SETTINGS, "optimizer.learning_rate=30")),
    "no-shuffle": (verdict.LEAKING, (*SETTINGS, "shuffle.block=0", "bn.group_size=2")),
    "queue-4096": (verdict.LARGE_QUEUE, (*SETTINGS, "queue.size=4096")),
    "queue-1024-of-128-images": (verdict.LARGE_QUEUE, (*SETTINGS, *_few(128, 64, 1024, 90))),
    "40-images": (verdict.STARVED, (*SETTINGS, *_few(40, 32, 32, 180))),
    "rate-1e-4": (verdict.STARVED, (*SETTINGS, "optimizer.learning_rate=0.0001")),
}
NAMED = {
    "seeds": ("0,1", "training seeds"),
    "cases": (",".join(CASES), "which of the cases"),
    "workdir": ("runs/verdicts", "a run per seed and case goes here"),
    "output": (None, "file for the JSON, besides stdout"),
    "logs": (None, "folder for the thinned logs"),
}
LINES = 10  # metrics lines kept of a log, evaluations aside
SHOWN = ("loss", "pretext_accuracy", "uniformity", "effective_rank", "positive_similarity", "negative_similarity")
SHOWN += ("queue_filled", "own_keys", "key_cosine_100", "leak")


def settled(page: Any, settings: tuple[str, ...]) -> config.Config:
    """The config of a page with settings KEY=VALUE over it."""
    argv = [f"--config.{s}" for s in settings]
    return config.read(flags.parse([*argv, *page], page="digits", named={}, usage="")[0])


def record(workdir: Path) -> dict[str, Any]:
    """A run's config.json and log, thinned to LINES metrics lines and all evaluations, to four digits."""
    about = json.loads((workdir / "config.json").read_text())
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    lines = [r for r in lines if r.get("event") in (None, "start")]
    steps = [r["step"] for r in lines if "loss" in r]
    kept = {steps[round(i * (len(steps) - 1) / (LINES - 1))] for i in range(LINES)}
    lines = [r for r in lines if "loss" not in r or r["step"] in kept]
    short = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in r.items()} for r in lines]
    return {"about": {k: about[k] for k in ("config", "objects", "total_steps")}, "log": short}


def described(workdir: Path, meant: str) -> dict[str, Any]:
    """The verdict on a run beside what was meant, kNN at first and last, and the numbers that it rests on."""
    run = runs.read(workdir)
    found = verdict.of(run)
    knn = run.series.get("knn_top1", {})
    numbers = {name: value for name in SHOWN if (value := verdict.late(run, name)) is not None}
    out = {"meant": meant, "verdict": found.kind, "right": found.kind == meant, "text": found.text}
    out |= {"own_keys_expected": verdict.own_keys(run), "images": run.images, "steps": run.step}
    out |= {"knn": [knn[min(knn)], knn[max(knn)]] if knn else None}
    return out | {name: float(f"{value:.4g}") for name, value in numbers.items()}


def main() -> int:
    """Train, read, write."""
    _, named = flags.parse(sys.argv[1:], page="digits", named=NAMED, usage=__doc__ or "")
    flags.prepare_environment()
    from moco_jax import pretrain

    overrides = [a for a in sys.argv[1:] if a.startswith("--config.")]
    result: dict[str, Any] = {}
    for seed in named["seeds"].split(","):
        for name in named["cases"].split(","):
            meant, settings = CASES[name]
            workdir = Path(named["workdir"]) / f"{name}-{seed}"
            pretrain.train(settled(overrides, (*settings, f"seed={seed}")), workdir)
            result.setdefault(name, {})[seed] = described(workdir, meant)
            if named["logs"] and seed == named["seeds"].split(",")[0]:
                Path(named["logs"]).mkdir(parents=True, exist_ok=True)
                lines = [json.dumps(v) for v in (record(workdir)["about"], *record(workdir)["log"])]
                (Path(named["logs"]) / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    print(json.dumps(result, indent=2))
    if named["output"]:
        Path(named["output"]).write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(r["right"] for seeds in result.values() for r in seeds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
