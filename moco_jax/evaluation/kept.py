"""The result of an evaluation in its folder: made once, read back for the same question, refused for another."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax.checkpoints.store import read_json
from moco_jax.config import ConfigError
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import few, fitting, labelled
from moco_jax.state import Network

FORMAT = 1  # of result.json; another number where its keys change


def question(
    settings: Any, loaded: frozen.Loaded, network: Network, pair: labelled.Pair, drawn: Sequence[np.ndarray] = ()
) -> dict[str, Any]:
    """What decides a result, JSON-ready: settings, and digests of the network, of the images and of the rows drawn."""
    about = {"settings": fitting.plain(settings), "step": loaded.step}
    about |= {"encoder": frozen.digest(network), "data": pair.digest}
    return about | ({"drawn": few.digest(drawn)} if drawn else {})


def result(
    about: dict[str, Any],
    workdir: str | Path,
    make: Callable[[], dict[str, Any]],
    network: Network,
    loaded: frozen.Loaded,
    *,
    checkpoint: str | Path | None,
) -> dict[str, Any]:
    """What `make` gives, with `about` beside it: kept in WORKDIR/result.json, and read back from there.

    Raises ConfigError where the folder is that of a run or holds another evaluation, finished or begun, and
    RuntimeError where `network` is not bit for bit what it was before, in memory and, if it was trained, in the
    `checkpoint` (None: not compared).
    """
    frozen.check_no_run(workdir)
    folder = Path(workdir)
    path = folder / "result.json"
    stored = read_json(path)
    if stored is not None and stored.get("format") != FORMAT:
        raise ConfigError(f"{path} was written in another form, by another version: give another --workdir")
    for found in (stored and stored.get("about", {}), *map(read_json, sorted(folder.glob(f"*/{fitting.BEGUN}")))):
        if found is not None:
            fitting.check_same(found, about, folder)
    if stored is None:
        made = make()
        after, how = {frozen.digest(network)}, "as before, in memory"
        if checkpoint is not None and network is loaded.trained.network:
            after.add(frozen.stored_digest(checkpoint, loaded.step, network))
            how = "as the checkpoint holds it"
        if after != {about["encoder"]}:
            raise RuntimeError("the encoder changed while it was evaluated; the result is not kept")
        stored = {"format": FORMAT, "about": about, **made, "unchanged": how}
        fitting.keep(path, stored)
    return stored


def origin(stored: dict[str, Any], workdir: str | Path, where: str) -> str:
    """The last line of an evaluation: which encoder, that nothing moved, and the file of the numbers."""
    return f"encoder {where}, bit for bit {stored['unchanged']}; numbers in {Path(workdir) / 'result.json'}"
