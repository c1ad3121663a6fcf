"""Label errors, found by confident learning."""

from dataclasses import dataclass

import numpy as np

METHOD = "self_confidence"
"""How cleanlab scores a label: by its probability. benchmarks/data_audit.py compares its methods."""


@dataclass(frozen=True)
class LabelErrors:
    """Suspected label errors, the most likely first: `indices` int64 [E], `quality` float64 [E] from 0 (bad) to 1."""

    indices: np.ndarray
    quality: np.ndarray


def score_labels(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Score each label from 0 (probably wrong) to 1.

    Args:
        labels: integer [N].
        probabilities: float [N, classes], of models that were not trained on these images.

    Returns:
        float64 [N].
    """
    from cleanlab.rank import get_label_quality_scores  # takes seconds to import

    return get_label_quality_scores(labels, probabilities.astype(np.float64), method=METHOD)


def find_label_errors(labels: np.ndarray, probabilities: np.ndarray) -> LabelErrors:
    """Find the labels that are probably wrong.

    Their number is estimated by confident learning (Northcutt et al. 2021, "Confident Learning", arXiv:1911.00068), and
    the labels with the lowest scores are taken. Arguments as in `score_labels`.
    """
    from cleanlab.filter import find_label_issues

    found = find_label_issues(labels, probabilities.astype(np.float64), filter_by="low_self_confidence", n_jobs=1)
    scores = score_labels(labels, probabilities)
    indices = np.flatnonzero(found)
    indices = indices[np.argsort(scores[indices], kind="stable")]
    return LabelErrors(indices, scores[indices])
