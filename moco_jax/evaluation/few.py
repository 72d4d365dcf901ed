"""Which labels are used: all, a few per class, a share, or those of a published list; and which are held out."""

import hashlib
import re
import warnings
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from moco_jax.config import ConfigError

FORMS = "all, a number per class such as 10, a share such as 1%, or a text file with the name of one image per line"
MOST_PARTS = 100  # that groups are dealt into


def is_list(spec: str) -> bool:
    """Whether a text names a file of names: a number or a share is none, even where a file of that name is here."""
    return re.fullmatch(r"\d+(\.\d+)?%?", spec) is None and Path(spec).is_file()


def check(spec: str) -> None:
    """Raises ConfigError for a text that says no labels, whatever the images."""
    if spec == "all" or is_list(spec) or re.fullmatch(r"[1-9]\d*", spec):
        return
    share = re.fullmatch(r"(\d+(?:\.\d+)?)%", spec)
    if share is None:
        missing = f"there is no file {spec!r} here; " if re.search(r"[./\\]", spec) else ""
        raise ConfigError(f"labels {spec!r}: {missing}it must be {FORMS}")
    if not 0 < float(share[1]) <= 100:
        raise ConfigError(f"labels {spec!r}: a share lies above 0% and up to 100%")


def rows(
    labels: np.ndarray,
    spec: str,
    *,
    seed: int,
    draw: int,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """The records (n,), rising, whose labels are used: a function of (seed, draw), so the same for every encoder.

    "10" draws as many of each class, "1%" the share of each class (rounded, at least one), a file names the records
    by `names` or by their last part (one that is called like a number is ./10). Raises ConfigError for fewer labels
    than asked for, names that are not there, a file that leaves out a class, and any other text; `class_names` are
    what it calls the classes.
    """
    check(spec)
    if spec == "all":
        return np.arange(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    called = [_called(c, class_names) for c in classes.tolist()]
    if is_list(spec):
        listed = _listed(Path(spec), names)
        left_out = [name for name, c in zip(called, classes, strict=True) if c not in labels[listed]]
        if left_out:
            raise ConfigError(
                f"{spec}: its {len(listed)} images leave out {len(left_out)} of {len(classes)} classes, such as "
                f"{left_out[0]}: no classifier could name them; add images of these"
            )
        return listed
    wanted = np.full(len(counts), int(spec)) if spec.isdigit() else np.maximum(np.rint(_share(spec) * counts), 1)
    if (wanted > counts).any():
        poorest = counts.argmin()
        raise ConfigError(
            f"labels {spec}: class {called[poorest]} has {counts[poorest]} train images; use that many or fewer"
        )
    rng = np.random.default_rng(np.random.SeedSequence([seed, draw]))
    drawn = [rng.permutation(np.flatnonzero(labels == c))[: int(n)] for c, n in zip(classes, wanted, strict=True)]
    return np.sort(np.concatenate(drawn))


def digest(draws: Sequence[np.ndarray]) -> str:
    """SHA-256 of the records of every draw."""
    return hashlib.sha256(b"|".join(rows.astype(np.int64).tobytes() for rows in draws)).hexdigest()


def holdout(
    labels: np.ndarray,
    groups: np.ndarray | None,
    share: float,
    *,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Records that are kept, and a share that is set apart, both rising: classes alike in both, groups whole.

    Of images it is the share to a whole image, with every class on both sides. Groups are dealt into n parts alike in
    classes, and m of them are set apart, as m / n is nearest to the share; every class is kept. Raises ConfigError
    where a class, called as in `class_names`, or the groups are too few.
    """
    if share == 0:
        return np.arange(len(labels)), np.zeros(0, np.int64)
    if groups is None:
        apart = _images_apart(labels, share, seed, class_names)
    else:
        apart = _groups_apart(labels, groups, share, seed, class_names)
    return np.flatnonzero(~apart), np.flatnonzero(apart)


def _called(c: int, class_names: Sequence[str] | None) -> str:
    return str(c) if class_names is None or c >= len(class_names) else repr(class_names[c])


def _images_apart(labels: np.ndarray, share: float, seed: int, class_names: Sequence[str] | None) -> np.ndarray:
    """(N,) bool, the images that are set apart."""
    classes, counts = np.unique(labels, return_counts=True)
    total, poorest = round(share * len(labels)), int(counts.argmin())
    smallest = f"class {_called(int(classes[poorest]), class_names)} has {counts[poorest]}"
    if counts[poorest] < 2:
        raise ConfigError(f"a share of {share:g} cannot be set apart: {smallest} image, and one on each side is needed")
    least, most = len(classes), len(labels) - len(classes)
    if not least <= total <= most:
        raise ConfigError(
            f"a share of {share:g} of {len(labels)} images is {total}, too few on one side for an image of each of "
            f"{least} classes ({smallest}): use a share from {least / len(labels):.4g} to {most / len(labels):.4g}"
        )
    rng, apart = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for c, taken in zip(classes, _taken(counts, total), strict=True):
        apart[rng.permutation(np.flatnonzero(labels == c))[:taken]] = True
    return apart


def _taken(counts: np.ndarray, total: int) -> np.ndarray:
    """(C,) how many of each class are set apart, `total` in all: equal shares but for whole images and none emptied."""
    equal = counts * total / counts.sum()
    taken = np.clip(np.floor(equal).astype(int), 1, counts - 1)
    while missing := total - taken.sum():
        step = np.sign(missing)
        free = (taken + step >= 1) & (taken + step < counts)
        taken[np.where(free, step * (equal - taken), -np.inf).argmax()] += step
    return taken


def _groups_apart(
    labels: np.ndarray, groups: np.ndarray, share: float, seed: int, class_names: Sequence[str] | None
) -> np.ndarray:
    """(N,) bool, the images of the groups that are set apart."""
    from sklearn.model_selection import StratifiedGroupKFold

    classes, counts = np.unique(labels, return_counts=True)
    there = len(np.unique(groups))
    parts = min(there, int(counts.max()), MOST_PARTS)
    near = Fraction(share).limit_denominator(parts)
    if not 0 < near < 1:
        raise ConfigError(
            f"a share of {share:g} cannot be set apart by whole groups: {there} of them, with up to {counts.max()} "
            f"images of a class, make {parts} parts, and it is nearer to {'all' if near else 'none'} of these: use one "
            "nearer to a half"
        )
    part = np.empty(len(labels), int)
    with warnings.catch_warnings():  # of a class smaller than the number of parts: `choices` sees to what matters
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        splitter = StratifiedGroupKFold(near.denominator, shuffle=True, random_state=seed)
        for i, (_, held) in enumerate(splitter.split(labels, labels, groups)):
            part[held] = i
    turns = [(part - i) % near.denominator < near.numerator for i in range(near.denominator)]
    choices = [apart for apart in turns if apart.any() and len(np.unique(labels[~apart])) == len(classes)]
    if not choices:
        spread = [len(np.unique(groups[labels == c])) for c in classes]
        rarest = _called(int(classes[np.argmin(spread)]), class_names)
        raise ConfigError(
            f"a share of {share:g} of {there} groups cannot be set apart so that every class is kept: class "
            f"{rarest} is in {min(spread)} of them; use a smaller share or another seed, or name the splits"
        )
    return min(choices, key=lambda apart: abs(apart.mean() - share))


def _share(spec: str) -> float:
    return float(spec.removesuffix("%")) / 100


def _listed(path: Path, names: Sequence[str] | None) -> np.ndarray:
    if names is None:
        raise ConfigError(f"labels {path}: the images have no names to look the list up by")
    try:
        listed = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ConfigError(f"labels {path} is no text file with the name of one image per line") from None
    if not listed:
        raise ConfigError(f"labels {path}: the file names no image")
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        for key in {name, name.rsplit("/", 1)[-1]}:
            places.setdefault(key, []).append(i)
    missing = [name for name in listed if len(places.get(name, [])) != 1]
    if missing:
        raise ConfigError(
            f"{path}: {len(missing)} of its {len(listed)} names belong to no image, or to several, such as "
            f"{missing[:1]}; give names as `moco-jax features` writes them, or their last part where that is unique"
        )
    return np.unique([places[name][0] for name in listed])
