"""Which labels are used: all, a few per class, a share, or those of a published list; and which are held out."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moco_jax.config import ConfigError

FORMS = "all, a number per class such as 10, a share such as 1%, or a text file with the name of one image per line"


def rows(labels: np.ndarray, spec: str, *, seed: int, draw: int, names: Sequence[str] | None = None) -> np.ndarray:
    """The records (n,), rising, whose labels are used: a function of (seed, draw), so the same for every encoder.

    "10" draws as many of each class, "1%" the share of each class (rounded, at least one), a file names the records
    by `names` or by their last part. Raises ConfigError for fewer labels than asked for, names that are not there, and
    any other text.
    """
    if spec == "all":
        return np.arange(len(labels))
    if Path(spec).is_file():
        return _listed(Path(spec), names)
    share = re.fullmatch(r"(\d+(?:\.\d+)?)%", spec)
    if not share and not re.fullmatch(r"[1-9]\d*", spec):
        raise ConfigError(f"labels {spec!r} is none of: {FORMS}")
    classes, counts = np.unique(labels, return_counts=True)
    if share and not 0 < float(share[1]) <= 100:
        raise ConfigError(f"labels {spec!r}: a share lies above 0% and up to 100%")
    wanted = np.maximum(np.rint(float(share[1]) / 100 * counts), 1) if share else np.full(len(counts), int(spec))
    if (wanted > counts).any():
        poorest = counts.argmin()
        raise ConfigError(
            f"labels {spec}: class {classes[poorest]} has {counts[poorest]} train images; use that many or fewer"
        )
    rng = np.random.default_rng(np.random.SeedSequence([seed, draw]))
    drawn = [rng.permutation(np.flatnonzero(labels == c))[: int(n)] for c, n in zip(classes, wanted, strict=True)]
    return np.sort(np.concatenate(drawn))


def holdout(labels: np.ndarray, groups: np.ndarray | None, share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Records that are kept, and a share that is set apart, both rising: classes alike in both, groups whole.

    The share is rounded to one part in a whole number. Raises ConfigError where a class, or the groups, are too few.
    """
    if share == 0:
        return np.arange(len(labels)), np.zeros(0, np.int64)
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    parts = round(1 / share)
    counts = np.bincount(labels)
    fewest = int(counts[counts > 0].min())
    if parts < 2 or (groups is None and fewest < 2):
        raise ConfigError(f"a share of {share:g} cannot be set apart: the smallest class has {fewest} images")
    if groups is not None and len(np.unique(groups)) < parts:
        raise ConfigError(
            f"a share of {share:g} takes {parts} groups or more, and there are {len(np.unique(groups))}: use a larger "
            "share"
        )
    if groups is None:
        splitter = StratifiedKFold(min(parts, fewest), shuffle=True, random_state=seed)
        kept, held = next(splitter.split(labels, labels))
    else:
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        kept, held = next(splitter.split(labels, labels, groups))
    return np.sort(kept), np.sort(held)


def _listed(path: Path, names: Sequence[str] | None) -> np.ndarray:
    if names is None:
        raise ConfigError(f"labels {path}: the images have no names to look the list up by")
    listed = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        for key in {name, name.rsplit("/", 1)[-1]}:
            places.setdefault(key, []).append(i)
    missing = [name for name in listed if len(places.get(name, [])) != 1]
    if missing or not listed:
        raise ConfigError(
            f"{path}: {len(missing)} of its {len(listed)} names belong to no image, or to several, such as "
            f"{missing[:1]}; give names as `moco-jax features` writes them, or their last part where that is unique"
        )
    return np.unique([places[name][0] for name in listed])
