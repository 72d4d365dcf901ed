"""What a report shows of a run beside its curves, as arrays: view pairs, nearest neighbours, a map of features."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from moco_jax.config import Config, ConfigError, unknown
from moco_jax.core.randomness import AUGMENT, CROP, key
from moco_jax.data import replacing, sources
from moco_jax.evaluation.encoder import FrozenEncoder, Values

MAPS = ("pca", "tsne")
BATCH = 32  # images per call: few, as one call is for six held-out images


class Neighbours(NamedTuple):
    """Images and those nearest to them: centre views as stored, mapped to 0..1."""

    queries: np.ndarray  # (Q, S, S, C)
    found: np.ndarray  # (Q, k, S, S, C), the nearest first
    similarity: np.ndarray  # (Q, k), cosines
    labels: np.ndarray | None  # (Q, 1 + k) integers, the query's first
    where: str  # which images, in words


class Encoded(NamedTuple):
    """Some images of a source: their centre views as stored, features, and what may colour them."""

    views: np.ndarray  # (M, S, S, C)
    features: np.ndarray  # (M, D)
    marks: np.ndarray | None  # (M,) integers
    marked_by: str  # "label", "group" or ""
    name: str


def view_pairs(views: Any, config: Config, source: sources.Source, batch: dict[str, Any], step: int) -> np.ndarray:
    """The views of a batch's rows as the step makes them, mapped to 0..1 and clipped: (n, V, S, S, C) float32.

    views: `views.Views`; batch: host rows {ids (n, V)}, with pixels on the streamed path; positions are 0 to n - 1.
    """
    rows = len(batch["ids"])
    data, placed = {}, dict(batch)
    if not batch.keys() & {"raw", "canvas"}:  # resident: these images alone, numbered anew
        used, places = np.unique(batch["ids"], return_inverse=True)
        data = {"images": np.stack([sources.read(source, i) for i in used.tolist()])}
        placed["ids"] = places.reshape(batch["ids"].shape).astype(np.int32)
    mean, std = (np.asarray(a, np.float32) for a in (config.data.mean, config.data.std))

    @jax.jit
    def make(batch: Any, data: Any) -> list[jax.Array]:
        positions = np.arange(rows, dtype=np.int32)
        raw = views.raw(batch, data, positions, key(config.seed, step, CROP))
        return [views.augment(x, positions, key(config.seed, step, AUGMENT), v) for v, x in enumerate(raw)]

    made = np.stack([np.asarray(x, np.float32) for x in make(placed, data)], axis=1)
    return np.clip(made * std + mean, 0, 1)


def encode(encoder: FrozenEncoder, config: Config, source: sources.Source, count: int) -> Encoded:
    """At most `count` images, spread evenly over a source, by the feature that kNN takes; bad files are left out."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int))
    view = encoder.preprocessing.view
    chosen, images = replacing.readable(source, chosen.tolist())
    views, parts = np.stack([view(image) for image in images]), []
    for start in range(0, len(views), BATCH):
        part = views[start : start + BATCH]
        padded = np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), part.dtype)])  # one compile
        parts.append(encoder.features(padded)[config.eval.feature][: len(part)])
    marks, by = sources.labels_of(source, chosen), "label"
    if marks is None and (groups := sources.groups_of(source)) is not None:
        marks, by = np.asarray(groups)[chosen], "group"
    return Encoded(
        views,
        np.concatenate(parts).astype(np.float32),
        marks,
        "" if marks is None else by,
        source.name,
    )


def neighbours(queries: Encoded | None, bank: Encoded, values: Values, *, count: int, nearest: int) -> Neighbours:
    """The nearest by cosine in the bank of `count` queries; without queries, of images of the bank, itself left out.

    Raises ConfigError where the bank holds too few.
    """
    among = bank if queries is None else queries
    chosen = np.linspace(0, len(among.views) - 1, min(count, len(among.views))).astype(int)
    nearest = min(nearest, len(bank.views) - (queries is None))
    if nearest < 1:
        raise ConfigError(f"{bank.name} holds {len(bank.views)} images: no neighbours to show")
    keys = _unit(bank.features)
    similarity = _unit(among.features[chosen]) @ keys.T  # (Q, M)
    if queries is None:
        similarity[np.arange(len(chosen)), chosen] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :nearest]  # (Q, k)
    labels = None
    if among.marks is not None and bank.marks is not None and among.marked_by == bank.marked_by:
        labels = np.concatenate([among.marks[chosen][:, None], bank.marks[order]], axis=1)
    shown = functools.partial(_shown, values=values)
    where = f"of {bank.name}, among its other images" if queries is None else f"of {among.name}, among {bank.name}"
    return Neighbours(
        shown(among.views[chosen]),
        shown(bank.views[order]),
        np.take_along_axis(similarity, order, axis=1),
        labels,
        where,
    )


def plane(encoded: Encoded, how: str) -> np.ndarray:
    """Features as points of a plane, by scikit-learn: (M, 2). ConfigError for an unknown way or too few images."""
    if how not in MAPS:
        raise unknown("--map", how, MAPS)
    if len(encoded.features) < 4:
        raise ConfigError(f"{encoded.name}: {len(encoded.features)} images make no map; 4 or more do")
    return _PLANES[how](_unit(encoded.features))


def _pca(x: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    return np.asarray(PCA(2, random_state=0).fit_transform(x))


def _tsne(x: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)  # scikit-learn's default, and what few images allow
    return np.asarray(TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(x))


_PLANES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"pca": _pca, "tsne": _tsne}


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(x.dtype).tiny)


def _shown(x: np.ndarray, *, values: Values) -> np.ndarray:
    """Stored values mapped to 0..1 and clipped, float32."""
    return np.clip((x.astype(np.float32) - values.low) / (values.high - values.low), 0, 1)
