"""Scores of a classifier, from its probabilities and the labels; computed by scikit-learn where it has them.

To add a score to the test: compute it in `summarize` and declare it in `pipeline.metrics_schemas.TestMetrics`.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support

from vision.evaluation.intervals import wilson
from vision.pipeline.metrics_schemas import CalibrationBin, ClassScores


def summarize(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Compute the scores over all images.

    Args:
        labels: integer [N], the actual classes.
        probabilities: float [N, classes]; each row sums to 1.

    Returns:
        accuracy with the ends of its 95% confidence interval, top5_accuracy, cross_entropy (nats), macro precision,
        recall and F1 (0 for a class that is never predicted or never occurs), and the expected calibration error with
        15 bins.
    """
    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=classes, average="macro", zero_division=0
    )
    interval = wilson(int((predicted == labels).sum()), len(labels))
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "top5_accuracy": top_k_accuracy(labels, probabilities, k=5),
        "cross_entropy": float(log_loss(labels, _normalize(probabilities), labels=classes)),
        "precision_macro": float(precision),
        "recall_macro": float(recall),
        "f1_macro": float(f1),
        "calibration_error": calibration_error(calibration(labels, probabilities)),
    }


def top_k_accuracy(labels: np.ndarray, probabilities: np.ndarray, k: int) -> float:
    """Compute the share of images whose class is among the `k` most probable; 1 if there are at most `k` classes."""
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((top == labels[:, None]).any(1).mean())


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count images by actual class (rows) and predicted class (columns), int64 [classes, classes]."""
    return confusion_matrix(labels, predicted, labels=np.arange(classes))


def per_class(
    labels: np.ndarray, predicted: np.ndarray, names: Sequence[str], sets: np.ndarray | None = None
) -> list[ClassScores]:
    """Compute precision, recall and F1 (0 if undefined) of each class, and its number of images.

    Args:
        labels: integer [N], the actual classes.
        predicted: integer [N].
        names: of the classes.
        sets: prediction sets, bool [N, classes], or None.
    """
    columns = precision_recall_fscore_support(labels, predicted, labels=np.arange(len(names)), zero_division=0)
    rows = []
    for number, (name, precision, recall, f1, images) in enumerate(zip(names, *columns, strict=True)):
        of_class = labels == number
        interval = wilson(int((predicted[of_class] == number).sum()), int(images))
        set_size = float(sets[of_class].sum(1).mean()) if sets is not None and images else None
        rows.append(
            ClassScores(
                name=name,
                precision=precision,
                recall=recall,
                recall_low=interval.low,
                recall_high=interval.high,
                f1=f1,
                images=images,
                prediction_set_size=set_size,
            )
        )
    return rows


def calibration(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> list[CalibrationBin]:
    """Compute the accuracy at each level of confidence, which is the probability of the predicted class.

    The interval [0, 1] is divided into `bins` equal bins; bins without images are left out.
    """
    confidence = probabilities.max(1).astype(np.float64)
    correct = probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    bin_of_image = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, bins - 1)
    return [
        CalibrationBin(
            confidence_from=float(edges[index]),
            confidence_to=float(edges[index + 1]),
            images=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(correct[inside].mean()),
        )
        for index in np.unique(bin_of_image)
        for inside in [bin_of_image == index]
    ]


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv:1706.04599): mean |confidence - accuracy|."""
    images = sum(row.images for row in bins)
    return sum(row.images * abs(row.confidence - row.accuracy) for row in bins) / images


def _normalize(probabilities: np.ndarray) -> np.ndarray:
    wide = probabilities.astype(np.float64)
    return wide / wide.sum(1, keepdims=True)
