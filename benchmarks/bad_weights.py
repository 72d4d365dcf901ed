"""What becomes of files that are no weights, are damaged, or hold code: how many are explained, as JSON. Needs torch.

    python -m benchmarks.bad_weights --flips=2000 --output=benchmarks/results/bad_weights.json

Contents are written by torch in both of its formats: reducers that run a command at five places in a checkpoint,
values that are not plain, tensors that no weights are, and structures that make no sense. "explained" is a ConfigError
of one line that names the file, "executed" counts files of which anything ran. Flips change one random bit of a small
checkpoint; "equal" ones changed nothing that is read.
"""

import collections
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import output
from moco_jax.cli import flags

NAMED = {"flips": (2000, "bits changed in each format"), "output": (None, "file for the JSON, besides stdout")}
USAGE = "usage: python -m benchmarks.bad_weights [--flips=N] [--output=FILE]"


def measure(folder: Path, *, times: int, kinds: Iterable[str] | None = None) -> dict[str, Any]:
    """Counts by kind of file and format; `kinds` None: all of them."""
    import torch

    from moco_jax.checkpoints import pytorch
    from tests.checkpoints import bad_files, foreign, outcomes

    counts, unexplained = {}, []
    for legacy, form in ((False, "zip"), (True, "legacy")):
        for kind in outcomes.CONTENTS if kinds is None else kinds:
            tried = list(outcomes.contents(kind, folder, legacy=legacy))
            counts[f"{kind}, {form}"] = _counts(tried)
            unexplained += [f"{kind}, {form}: {t.name}" for t in tried if t.outcome != "explained"]
    tried = list(outcomes.files(folder))
    counts["other files"] = _counts(tried)
    unexplained += [t.name for t in tried if t.outcome != "explained"]
    flips = {}
    for legacy, form in ((False, "zip"), (True, "legacy")):
        path = foreign.save(folder / f"{form}.pth.tar", bad_files.good(), legacy=legacy)
        bits, sha256 = bad_files.some_bits(path, times), pytorch.digests(path)[1]
        found = collections.Counter(outcome for _, outcome, _ in outcomes.flips(path, bits))
        refused = sum(outcomes.of(p, sha256=sha256)[0] == "explained" for p in bad_files.flipped(path, bits))
        flips[form] = {"bytes": path.stat().st_size, "tried": times, **found, "explained with sha256": refused}
    total = {name: sum(c[name] for c in counts.values()) for name in ("tried", "explained", "executed")}
    return {"torch": torch.__version__, "total": total, "kinds": counts, "unexplained": unexplained, "flips": flips}


def _counts(tried: list[Any]) -> dict[str, int]:
    explained, executed = (
        sum(map(bool, of)) for of in zip(*((t.outcome == "explained", t.executed) for t in tried), strict=True)
    )
    return {"tried": len(tried), "explained": explained, "executed": executed}


def main() -> int:
    """Measure as the flags say."""
    return flags.run(_run, sys.argv[1:])


def _run(argv: list[str]) -> int:
    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=USAGE)
    flags.prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        output.keep(measure(Path(folder), times=named["flips"]), named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
