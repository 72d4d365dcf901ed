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

from benchmarks import output
from moco_jax import config, pages, protocols
from moco_jax.cli import flags
from moco_jax.reports import table

NAMED = {
    "seeds": ("0,1,2,3,4", "training seeds"),
    "workdir": ("runs/seeds", "a run per seed goes here"),
    "output": (None, "file for the JSON, besides stdout"),
}


def one(page: Any, seed: int, workdir: Path) -> dict[str, Any]:
    """{row: {column: cell}} of the table of one training seed."""
    from moco_jax import pretrain
    from moco_jax.evaluation import transfer

    page.seed = seed
    run = workdir / str(seed)
    pretrain.train(config.read(page), run)
    asked = pages.load("transfer_digits")
    asked.labels, asked.draws, asked.finetune = ("10",), 20, False
    print(transfer.run(protocols.read(asked, protocols.Transfer), [str(run)], run / "transfer"), flush=True)
    made = table.from_json(json.loads((run / "transfer" / "table.json").read_text()))
    cells = {name: dict(zip(made.columns, row, strict=True)) for name, row in made.rows}
    return {"trained" if name == str(seed) else name: row for name, row in cells.items()}


def summary(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over the seeds: linear with few labels and with all, kNN, and the difference to the last row."""
    out: dict[str, Any] = {}
    for name in tables[0]:
        few, everything = ([t[name][column] for t in tables] for column in ("linear, 10 per class", "linear"))
        means = [cell.mean for cell in few]
        out[name] = {
            "few_mean": float(np.mean(means)),
            "few_std": float(np.std(means, ddof=1)) if len(means) > 1 else 0.0,
            "few_by_seed": means,
            "all_mean": float(np.mean([cell.mean for cell in everything])),
            "all_by_seed": [cell.mean for cell in everything],
            "knn_by_seed": [table[name]["kNN"].mean for table in tables],
            "differences": [cell.difference for cell in few],
        }
    return out


def main() -> int:
    """Train and judge every seed."""
    page, named = flags.parse(sys.argv[1:], page="digits", named=NAMED, usage=__doc__ or "")
    flags.prepare_environment()
    seeds = [int(s) for s in named["seeds"].split(",")]
    rows = summary([one(page, seed, Path(named["workdir"])) for seed in seeds])
    output.keep({"seeds": seeds, "rows": rows}, named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
