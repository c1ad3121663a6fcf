"""What a classifier's probabilities are worth: plain numbers from arrays, by scikit-learn wherever it has them."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support


def summary(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The headline figures.

    Args:
        labels: integer [N], the actual classes.
        probabilities: float [N, classes], each row adding up to 1.

    Returns:
        accuracy, top5_accuracy, cross_entropy (nats), macro precision, recall and F1 (a class that is never predicted,
        or never occurs, counts as 0), and the expected calibration error of 15 bins.
    """
    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=classes, average="macro", zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "top5_accuracy": top_k_accuracy(labels, probabilities, k=5),
        "cross_entropy": float(log_loss(labels, _normalized(probabilities), labels=classes)),
        "precision_macro": float(precision),
        "recall_macro": float(recall),
        "f1_macro": float(f1),
        "calibration_error": calibration_error(calibration(labels, probabilities)),
    }


def top_k_accuracy(labels: np.ndarray, probabilities: np.ndarray, k: int) -> float:
    """Share of the images whose class is among the `k` most probable (all of them where there are no more than `k`)."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(1).mean())


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 [classes, classes]: a row an actual class, a column a predicted one."""
    return confusion_matrix(labels, predicted, labels=np.arange(classes))


def per_class(
    labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> list[tuple[str, float, float, float, int]]:
    """For each class its name, precision, recall, F1 (0 where undefined) and number of images."""
    columns = precision_recall_fscore_support(labels, predicted, labels=np.arange(len(names)), zero_division=0)
    return [
        (name, float(precision), float(recall), float(f1), int(images))
        for name, precision, recall, f1, images in zip(names, *columns, strict=True)
    ]


def calibration(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 15
) -> list[tuple[float, float, int, float, float]]:
    """How often the model is right at each level of confidence (the probability of its prediction).

    Returns:
        For each of `bins` equal intervals (from, to] of confidence that holds images: from, to, number of images,
        mean confidence, accuracy.
    """
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    held = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, bins - 1)
    rows = []
    for number in np.unique(held):
        inside = held == number
        rows.append(
            (
                float(edges[number]),
                float(edges[number + 1]),
                int(inside.sum()),
                float(confidence[inside].mean()),
                float(right[inside].mean()),
            )
        )
    return rows


def calibration_error(rows: Sequence[tuple[float, float, int, float, float]]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): mean gap between confidence and accuracy."""
    images = sum(row[2] for row in rows)
    return sum(count * abs(confidence - accuracy) for _, _, count, confidence, accuracy in rows) / images


def _normalized(probabilities: np.ndarray) -> np.ndarray:
    wide = probabilities.astype(np.float64)
    return wide / wide.sum(1, keepdims=True)
