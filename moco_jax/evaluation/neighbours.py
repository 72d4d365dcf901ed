"""kNN of a frozen encoder as a command: several k, both features, every setting beside the numbers."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moco_jax import protocols
from moco_jax.checkpoints.store import read_json, write_json
from moco_jax.config import ConfigError, unknown
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import fitting, knn, labelled
from moco_jax.evaluation.features import extract

FEATURES = ("backbone", "head")


def run(
    settings: protocols.Knn, checkpoint: str | Path, workdir: str | Path, *, say: Callable[[str], None] = print
) -> str:
    """The numbers as text; made once per checkpoint and settings, then read back from `workdir`/result.json.

    `say` hears of the memory it will take, before it starts.
    Raises RuntimeError where the encoder is not bit for bit what the checkpoint holds afterwards.
    """
    check(settings)
    loaded = frozen.load(checkpoint)
    pair = labelled.open_pair(settings.data, loaded.config.data, seed=0, own_source=loaded.source, like=loaded.values)
    if max(settings.k) > len(pair.train.labels):
        raise ConfigError(
            f"k {max(settings.k)} neighbours, but {pair.train.source.name} holds {len(pair.train.labels)} images; use "
            "that many or fewer"
        )
    before = frozen.digest(loaded.trained.network)
    about = {"settings": fitting.plain(settings), "step": loaded.step, "encoder": before}
    path = Path(workdir) / "result.json"
    stored = read_json(path)
    if stored is None or stored.get("about") != about:
        stored = {"about": about, "test": pair.test_is, **_measured(settings, loaded.trained, pair, say)}
        after = {frozen.digest(loaded.trained.network)}
        after.add(frozen.stored_digest(checkpoint, loaded.step, loaded.trained.network))
        if after != {before}:
            raise RuntimeError("the encoder changed while it was evaluated; the result is not kept")
        Path(workdir).mkdir(parents=True, exist_ok=True)
        write_json(path, stored)
    where = f"encoder {loaded.trained.label}, step {loaded.step} of {loaded.total_steps} of {checkpoint}"
    return f"{text(stored)}\n{where}, bit for bit as before; numbers in {path}"


def check(settings: protocols.Knn) -> None:
    """Raises ConfigError for a number that cannot be."""
    if not settings.k or min(settings.k) < 1 or len(set(settings.k)) < len(settings.k):
        raise ConfigError(f"k must hold one or more different numbers above 0, not {settings.k}")
    if not 0 < settings.temperature < math.inf:
        raise ConfigError(f"temperature must be above 0, not {settings.temperature}")
    if not settings.features:
        raise ConfigError(f"features must name one or more of {', '.join(FEATURES)}")
    for name in settings.features:
        if name not in FEATURES:
            raise unknown("features", name, FEATURES)
    for name in ("batch_size", "queries", "bank"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, not {getattr(settings, name)}")


def _measured(
    settings: protocols.Knn, encoder: frozen.FrozenEncoder, pair: labelled.Pair, say: Callable[[str], None]
) -> dict[str, Any]:
    """Top-1 by feature and k; JSON-ready."""
    get = functools.partial(extract, encoder, batch_size=settings.batch_size, workers=settings.data.workers)
    bank, queries = get(pair.train.source), get(pair.test.source)
    most, top1 = max(settings.k), {}
    for name in settings.features:
        needed = knn.memory(
            width=bank[name].shape[1],
            classes=pair.classes,
            k=most,
            rows=settings.queries,
            columns=min(settings.bank, len(bank[name])),
        )
        say(f"kNN on {name}: {len(bank[name]):,} x {bank[name].shape[1]} features, {needed / 2**20:,.0f} MiB at once")
        found = knn.nearest(bank[name], queries[name], k=most, rows=settings.queries, columns=settings.bank)
        ask = functools.partial(
            knn.vote, found, pair.train.labels, classes=pair.classes, temperature=settings.temperature
        )
        top1[name] = {str(k): float((ask(k=k) == pair.test.labels).mean()) for k in settings.k}
    return {"top1": top1, "images": {"train": len(pair.train.labels), "test": len(pair.test.labels)}}


def text(result: dict[str, Any]) -> str:
    """The numbers for a terminal."""
    settings, images = result["about"]["settings"], result["images"]
    lines = [f"{'kNN top-1':<12}" + "".join(f"{f'k={k}':>10}" for k in settings["k"])]
    for name, by_k in result["top1"].items():
        lines.append(f"{name:<12}" + "".join(f"{by_k[str(k)]:>10.2%}" for k in settings["k"]))
    data = settings["data"]
    lines.append(
        f"(T {settings['temperature']:g}, cosine; {images['train']:,} labelled images of {data['train_split']}, judged "
        f"on {images['test']:,} of {result['test']}; centre views; no k was chosen)"
    )
    return "\n".join(lines)
