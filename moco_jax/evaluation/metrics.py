"""What a classifier's scores are worth: top-1, top-5, per class, balanced, AUROC, confusion."""

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWN = 1000  # classes up to which the whole confusion matrix is kept


def of(scores: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, Any]:
    """Numbers of scores (Q, classes) against labels (Q,): JSON-ready; among equal scores the lowest label wins.

    per_class is None where the test images hold none of a class, and balanced_accuracy the mean over the others; top5
    is None for five classes or fewer, auroc for other than two.
    """
    from sklearn.metrics import confusion_matrix, roc_auc_score

    predicted = scores.argmax(1)  # (Q,)
    matrix = confusion_matrix(labels, predicted, labels=np.arange(classes))  # (classes, classes) true by predicted
    held = matrix.sum(1)
    shares = matrix.diagonal() / np.maximum(held, 1)
    two = classes == 2 and len(np.unique(labels)) == 2
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]  # (Q, 5)
    return {
        "top1": float(np.mean(predicted == labels)),
        "top5": float(np.mean((best == labels[:, None]).any(1))) if classes > 5 else None,
        "balanced_accuracy": float(shares[held > 0].mean()),
        "auroc": float(roc_auc_score(labels, scores[:, 1] - scores[:, 0])) if two else None,
        "per_class": [float(s) if n else None for s, n in zip(shares, held, strict=True)],
        "count": len(labels),
        "confusion": matrix.tolist() if classes <= DRAWN else None,
    }


def summary(found: dict[str, Any], class_names: Sequence[str]) -> str:
    """The numbers beside top-1, for a terminal; classes in quotes, as many a name is a number."""
    parts = [f"top-5 {found['top5']:.2%}"] if found["top5"] is not None else []
    parts.append(f"balanced {found['balanced_accuracy']:.2%}")
    if found["auroc"] is not None:
        parts.append(f"AUROC {found['auroc']:.4f}")
    there = [(share, name) for share, name in zip(found["per_class"], class_names, strict=True) if share is not None]
    parts.append("worst classes " + ", ".join(f"'{name}' {share:.1%}" for share, name in sorted(there)[:3]))
    return "  " + "; ".join(parts)
