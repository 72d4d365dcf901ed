"""The digits table over several training seeds: what `make train` reports, without the luck of one seed.

    python -m benchmarks.digits_seeds --seeds=0,1,2,3,4 --output=benchmarks/results/digits_seeds.json

Each seed trains the default page and is judged by the default probe, on the test split. The default page was chosen on
images held out of train, with seeds 100 and 101.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax import config, pages, protocols
from moco_jax.cli import flags

NAMED = {
    "seeds": ("0,1,2,3,4", "training seeds"),
    "workdir": ("runs/seeds", "a run per seed goes here"),
    "output": (None, "file for the JSON, besides stdout"),
}


def one(page: Any, seed: int, workdir: Path) -> dict[str, Any]:
    """Rows of the table of one training seed."""
    from moco_jax import pretrain
    from moco_jax.evaluation import intervals, transfer

    page.seed = seed
    run = workdir / str(seed)
    pretrain.train(config.read(page), run)
    asked = pages.load("transfer_digits")
    asked.labels, asked.draws, asked.finetune = ("10",), 20, False
    print(transfer.run(protocols.read(asked, protocols.Transfer), [str(run)], run / "transfer"), flush=True)
    rows: dict[str, Any] = {}
    found = {
        name: json.loads((run / "transfer" / "rows" / f"{file}.json").read_text())["columns"]
        for name, file in (("pixels", "pixels"), ("untrained", "untrained"), ("trained", str(seed)))
    }
    for name, columns in found.items():
        few, trained = (c["linear, 10 per class"] for c in (columns, found["trained"]))
        difference = None if name == "trained" else intervals.paired(trained, few)._asdict()
        rows[name] = {
            "few_mean": float(np.mean(few)),
            "all": float(np.mean(columns["linear"])),
            "difference": difference,
        }
    return rows


def summary(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over the seeds: accuracy with few labels and with all, and the difference to the last row."""
    out: dict[str, Any] = {}
    for name in tables[0]:
        few = [t[name]["few_mean"] for t in tables]
        out[name] = {
            "few_mean": float(np.mean(few)),
            "few_std": float(np.std(few, ddof=1)) if len(few) > 1 else 0.0,
            "few_by_seed": few,
            "all_mean": float(np.mean([t[name]["all"] for t in tables])),
            "all_by_seed": [t[name]["all"] for t in tables],
            "differences": [t[name]["difference"] for t in tables],
        }
    return out


def main() -> int:
    """Train and judge every seed."""
    page, named = flags.parse(sys.argv[1:], page="digits", named=NAMED, usage=__doc__ or "")
    flags.prepare_environment()
    seeds = [int(s) for s in named["seeds"].split(",")]
    result = {"seeds": seeds, "rows": summary([one(page, s, Path(named["workdir"])) for s in seeds])}
    text = json.dumps(result, indent=2)
    print(text)
    if named["output"]:
        Path(named["output"]).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
