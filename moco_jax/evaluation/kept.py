"""The result of an evaluation in its folder: made once, read back for the same question, refused for another."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax.checkpoints.store import read_json
from moco_jax.config import ConfigError
from moco_jax.evaluation import encoder as frozen
from moco_jax.evaluation import few, fitting, labelled, loading
from moco_jax.state import Network

FORMAT = 1  # of result.json; another number where its keys change


def question(
    settings: Any, loaded: loading.Loaded, network: Network, pair: labelled.Pair, drawn: Sequence[np.ndarray] = ()
) -> dict[str, Any]:
    """What decides a result, JSON-ready: settings, and digests of the network, of the images and of the rows drawn."""
    about = {"settings": fitting.plain(settings), "step": loaded.step}
    about |= {"encoder": frozen.digest(network), "data": pair.digest}
    if loaded.step is None:  # a run's own config says it, and that is settled; a file's may be edited
        how = {name: str(value) for name, value in loaded.trained.preprocessing._asdict().items()}
        about["preprocessing"] = how
    return about | ({"drawn": few.digest(drawn)} if drawn else {})


def result(
    about: dict[str, Any],
    workdir: str | Path,
    make: Callable[[], dict[str, Any]],
    network: Network,
    loaded: loading.Loaded,
    *,
    checkpoint: str | Path | None,
) -> dict[str, Any]:
    """What `make` gives, with `about` beside it: kept in WORKDIR/result.json, and read back from there.

    Raises ConfigError where the folder is that of a run or holds another evaluation, finished or begun, and where
    `network` is not bit for bit what it was before, in memory and, if it was trained, in the `checkpoint` (None: not
    compared).
    """
    loading.check_no_run(workdir)
    folder = Path(workdir)
    path = folder / "result.json"
    if (folder / "rows").is_dir():
        raise ConfigError(f"{folder} holds a table of `moco-jax transfer`; give another --workdir")
    stored = _read(path, about)
    if stored is None:
        with fitting.alone(folder):
            stored = _read(path, about)
            if stored is None:
                stored = {"format": FORMAT, "about": about, **make()}
                stored["unchanged"] = _unchanged(about["encoder"], network, loaded, checkpoint)
                fitting.keep(path, stored)
    return stored


def _read(path: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """The result that is there, or None; ConfigError where the folder holds another one, finished or begun."""
    stored = read_json(path)
    if stored is not None and stored.get("format") != FORMAT:
        raise ConfigError(f"{path} was written in another form, by another version: give another --workdir")
    if stored is not None and not isinstance(stored.get("about"), dict):
        raise _damaged(path, "it does not say of what it is")
    for found in (
        stored and stored["about"],
        *map(read_json, sorted(path.parent.glob(f"*/{fitting.BEGUN}"))),
    ):
        if found is not None:
            fitting.check_same(found, about, path.parent)
    return stored


def _unchanged(before: str, network: Network, loaded: loading.Loaded, checkpoint: str | Path | None) -> str:
    """In words, where the network was found to be the one of that digest; ConfigError where it is another."""
    after, how = {frozen.digest(network)}, "as before, in memory"
    if checkpoint is not None and network is loaded.trained.network:
        on_disk = loading.stored_digest(checkpoint, loaded.step, network)
        after |= set() if on_disk is None else {on_disk}
        how = f"{how} ({_gone(loaded)} since)" if on_disk is None else "as the checkpoint holds it"
    if after != {before}:
        raise ConfigError(
            f"the encoder changed while it was evaluated; the result is not kept: evaluate again, while nobody "
            f"writes to {checkpoint}"
        )
    return how


def _gone(loaded: loading.Loaded) -> str:
    return "the file has gone" if loaded.step is None else "the run has removed that checkpoint"


def said(text: Callable[[dict[str, Any]], str], stored: dict[str, Any], workdir: str | Path, where: str) -> str:
    """An evaluation as `text` tells it, and in a last line which encoder, that nothing moved, and the file.

    Raises ConfigError where the file lacks what is told, as one that was edited may.
    """
    path = Path(workdir) / "result.json"
    try:
        return f"{text(stored)}\nencoder {where}, bit for bit {stored['unchanged']}; numbers in {path}"
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, how: str) -> ConfigError:
    return ConfigError(f"{path} is damaged ({how}): delete it to evaluate again, or give another --workdir")
