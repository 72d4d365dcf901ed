"""Damage to a checkpoint: what is used silently, what is refused, and what digests cost, as JSON.

    python -m benchmarks.flips --flips=2000 --output=benchmarks/results/flips.json

Bits are flipped at random over all bytes of a checkpoint; every file is cut to nothing and to half, and deleted.
"refused" is one line that names the checkpoint; "harmless" damage changed nothing that is read; "silent" is a state or
a description that differs, without an error. Seconds are of one core.
"""

import collections
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output
from moco_jax.cli import flags

NAMED = {
    "flips": (2000, "bits flipped"),
    "megabytes": (100, "size of the state that digests are timed on"),
    "output": (None, "file for the JSON, besides stdout"),
}
USAGE = "usage: python -m benchmarks.flips [--flips=N] [--megabytes=N] [--output=FILE]"


def a_state(megabytes: float) -> dict[str, Any]:
    """A state of leaves large and small that do not compress."""
    rng = np.random.default_rng(0)
    sizes = [int(megabytes * 250_000 * share) for share in (0.5, 0.3, 0.15, 0.05)]
    params = {str(i): rng.standard_normal(size).astype(np.float32) for i, size in enumerate(sizes)}
    return {
        "online": {"params": params},
        "memory": {"queue": rng.standard_normal((64, 16)).astype(np.float32)},
        "step": np.asarray(7, np.int32),
    }


def damages(files: list[Path], flips: int, rng: random.Random) -> Iterator[tuple[str, Path, bytes | None]]:
    """(kind, file, its content afterwards; None: no file)."""
    for path in files:
        content = path.read_bytes()
        yield "deleted", path, None
        if content:
            yield "cut to nothing", path, b""
            yield "cut to half", path, content[: len(content) // 2]
    sizes = [path.stat().st_size for path in files]
    for path in rng.choices(files, sizes, k=flips):
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        yield "flipped", path, bytes(content)


def counts(folder: Path, step: int, like: Any, *, flips: int, rng: random.Random) -> dict[str, dict[str, int]]:
    """{kind of damage: {silent, refused, harmless, unexplained: how often}} over the files of a checkpoint."""
    from moco_jax.checkpoints.store import Damaged, Store
    from moco_jax.checkpoints.verified import leaves

    def read() -> Any:
        with Store(folder, read_only=True) as store:
            return store.about(step), leaves(store.restore(step, like))

    about, state = read()
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    files = sorted(p for p in (folder / str(step)).rglob("*") if p.is_file())
    for kind, path, content in damages(files, flips, rng):
        before = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        try:
            again, other = read()
            same = again == about and all(np.array_equal(other[k], v) for k, v in state.items())
            outcome = "harmless" if same else "silent"
        except Damaged as error:
            outcome = "refused" if "\n" not in str(error) and f"{folder}/{step}" in str(error) else "unexplained"
        except Exception:
            outcome = "unexplained"
        found[kind][outcome] += 1
        path.write_bytes(before)
    return {
        kind: {name: c[name] for name in ("silent", "refused", "harmless", "unexplained")} for kind, c in found.items()
    }


def seconds(folder: Path, megabytes: int) -> dict[str, float]:
    """What digests of a state of that size take, and a save that waits, beside the part of it that a step waits for."""
    from moco_jax import parallel
    from moco_jax.checkpoints import digests
    from moco_jax.checkpoints.store import Store
    from moco_jax.checkpoints.verified import leaves

    state = a_state(megabytes)
    begun = time.perf_counter()
    digests.of(leaves(state), {})
    hashed = time.perf_counter() - begun
    placed = parallel.put_data(state)
    with Store(folder) as store:
        begun = time.perf_counter()
        store.save(1, placed, {"format": 1})
        copied = time.perf_counter() - begun
        store.wait()
        written = time.perf_counter() - begun
    return {
        "megabytes": megabytes,
        "digests": round(hashed, 3),
        "blocked": round(copied, 3),
        "saved": round(written, 3),
    }


def measure(folder: Path, *, flips: int, megabytes: int) -> dict[str, Any]:
    """Counts by kind of damage, and seconds."""
    import jax

    from moco_jax import parallel
    from moco_jax.checkpoints.store import Store

    state = parallel.put_data(a_state(0.2))
    with Store(folder / "small") as store:
        store.save(7, state, {"format": 1, "config": {"seed": 0}})
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    found = counts(folder / "small", 7, like, flips=flips, rng=random.Random(0))
    total = {name: sum(c[name] for c in found.values()) for name in ("silent", "refused", "harmless", "unexplained")}
    return {"total": total, "damage": found, "seconds": seconds(folder / "large", megabytes)}


def main() -> int:
    """Measure as the flags say; 1 where damage was used silently or not explained."""
    return flags.run(_run, sys.argv[1:])


def _run(argv: list[str]) -> int:
    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=USAGE)
    flags.prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), flips=named["flips"], megabytes=named["megabytes"])
    output.keep(found, named["output"])
    return int(bool(found["total"]["silent"] or found["total"]["unexplained"]))


if __name__ == "__main__":
    sys.exit(main())
