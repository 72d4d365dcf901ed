"""A linear classifier by scikit-learn's logistic regression: for few labels, where SGD's settings would decide."""

import numpy as np

Features = tuple[np.ndarray, np.ndarray]  # of the train (M, D) and of the test images (Q, D)


def correct(features: Features, labels: Features, rows: np.ndarray, *, penalty: float) -> np.ndarray:
    """Which test images (Q,) a classifier fitted to the train images `rows` gets right, on features standardised by
    those rows; `penalty` is scikit-learn's C."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2000))
    classifier.fit(features[0][rows], labels[0][rows])
    return np.asarray(classifier.predict(features[1]) == labels[1])
