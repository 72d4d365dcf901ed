"""The linear classifier that `moco-jax eval-linear` trained on an encoder, to travel with it."""

from pathlib import Path

import numpy as np

from moco_jax.checkpoints import weights
from moco_jax.checkpoints.store import Store, read_json
from moco_jax.checkpoints.weights import Classifier
from moco_jax.config import ConfigError
from moco_jax.conversion.source import Source
from moco_jax.evaluation.encoder import digest
from moco_jax.state import Network


def read(workdir: Path, source: Source, which: str) -> Classifier:
    """The classifier in a folder of eval-linear, of the learning rate that its result is of.

    Raises ConfigError where there is none, and where it was trained on another encoder or on another feature.
    """
    result = read_json(workdir / "result.json")
    if result is None or "rows" not in result or not (workdir / "trained" / "checkpoints").is_dir():
        raise ConfigError(f"{workdir} holds no finished result of `moco-jax eval-linear`, such as runs/digits/linear")
    try:
        about, row, classes = result["about"], result["rows"]["trained encoder"], tuple(result["classes"])
        settings, trained_on = about["settings"], about["encoder"]
        at = list(settings["learning_rates"]).index(row["learning_rate"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{workdir}/result.json is not as `moco-jax eval-linear` writes it ({error!r})") from None
    if settings.get("feature") != "backbone":
        raise ConfigError(f"the classifier in {workdir} is on {settings.get('feature')} features, which do not travel")
    encoder = source.encoder(which)
    network = weights.network(encoder)
    if trained_on != digest(Network(**network)):
        raise ConfigError(
            f"the classifier in {workdir} was trained on another encoder than {source.name}'s {which} one"
        )
    with Store(workdir / "trained" / "checkpoints", read_only=True) as store:
        step = store.latest()
        if step is None:
            raise ConfigError(f"{workdir}/trained holds no finished checkpoint")
        params = store.tree(step)["online"]["params"]
    one = {name: np.asarray(value[at]) for name, value in params.items()}  # (D, classes), (classes,)
    return weights.classifier(one["kernel"].T, one["bias"], encoder, classes)
