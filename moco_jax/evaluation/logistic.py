"""A linear probe by scikit-learn's logistic regression, with few labels and with all, beside baselines."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_jax.config import ConfigError

Features = tuple[np.ndarray, np.ndarray]  # of the train (M, D) and of the test images (Q, D)


def accuracy(features: Features, labels: Features, rows: np.ndarray, *, penalty: float) -> float:
    """Test accuracy of a classifier fitted to the train images `rows`, on features standardised by those rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2000))
    classifier.fit(features[0][rows], labels[0][rows])
    return float(np.mean(classifier.predict(features[1]) == labels[1]))


def draw_few(labels: np.ndarray, per_class: int, draws: int, seed: int) -> list[np.ndarray]:
    """`draws` class-balanced sets of rows, `per_class` of each class; the same ones for everything that is compared."""
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < per_class:
        poorest = classes[counts.argmin()]
        raise ConfigError(
            f"labels_per_class {per_class}, but class {poorest} has {counts.min()} train images; use that or fewer"
        )
    rng = np.random.default_rng(seed)
    return [
        np.concatenate([rng.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in classes])
        for _ in range(draws)
    ]


def compare(
    rows: Mapping[str, Features], labels: Features, *, per_class: int, draws: int, penalty: float, seed: int
) -> dict[str, Any]:
    """Linear accuracy of named features, few labels (paired draws) and all: {name: {...}}, JSON-ready.

    The last name is compared with each other one: mean difference over the draws and its 95 % interval (Student's t).
    """
    few = draw_few(labels[0], per_class, draws, seed)
    everything = np.arange(len(labels[0]))
    accuracies = {name: [accuracy(f, labels, r, penalty=penalty) for r in few] for name, f in rows.items()}
    best = list(rows)[-1]
    return {
        name: {
            "few": accuracies[name],
            "few_mean": float(np.mean(accuracies[name])),
            "all": accuracy(features, labels, everything, penalty=penalty),
            "difference": None if name == best else _interval(accuracies[best], accuracies[name]),
        }
        for name, features in rows.items()
    }


def _interval(ours: list[float], theirs: list[float]) -> dict[str, float | None]:
    """Mean of paired differences and half the width of its 95 % interval."""
    from scipy import stats

    differences = np.subtract(ours, theirs)
    if len(differences) < 2:
        return {"mean": float(differences.mean()), "half_width": None}
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return {"mean": float(differences.mean()), "half_width": float(half)}


def table(result: Mapping[str, Any], *, per_class: int, draws: int) -> str:
    """The comparison as text for a terminal."""
    lines = [
        f"{'linear accuracy':<20}{f'{per_class} labels per class':>22}{'trained minus this':>22}{'all labels':>13}"
    ]
    for name, row in result.items():
        d = row["difference"]
        interval = "" if d is None or d["half_width"] is None else f" ± {100 * d['half_width']:.1f}"
        difference = "" if d is None else f"{100 * d['mean']:+.1f}{interval}"
        lines.append(f"{name:<20}{row['few_mean']:>21.1%} {difference:>21} {row['all']:>12.1%}")
    return "\n".join([*lines, f"({draws} paired draws of the labels: means, and mean differences with 95 % intervals)"])
