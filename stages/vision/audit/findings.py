"""What an audit found, and its numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vision.audit.data import AuditData
from vision.audit.duplicates import Pairs
from vision.audit.label_errors import LabelErrors
from vision.audit.outliers import Outliers
from vision.pipeline.metrics_schemas import AuditMetrics


@dataclass(frozen=True)
class Labels:
    """The labels that were checked.

    Attributes:
        indices: of the images that models of other folds predicted, int64 [M].
        probabilities: their predictions, float64 [M, classes].
        errors: suspected errors; their indices are rows of `indices`.
    """

    indices: np.ndarray
    probabilities: np.ndarray
    errors: LabelErrors


@dataclass(frozen=True)
class Findings:
    """Everything that an audit found.

    Attributes:
        pairs: near-duplicates, the highest correlation first.
        groups: the number of each image's group of near-duplicates, int64 [N]; 0 without near-duplicates.
        outliers: the most unusual images.
        labels: None without predictions of folds.
        correct: whether the model is right about each test image, bool [T].
    """

    data: AuditData
    pairs: Pairs
    groups: np.ndarray
    outliers: Outliers
    labels: Labels | None
    correct: np.ndarray

    def crosses(self, *splits: str) -> np.ndarray:
        """Whether the images of each pair are in these two splits, one in each: bool [P]."""
        first, second = (self.data.splits[indices] for indices in (self.pairs.first, self.pairs.second))
        one, other = splits
        return ((first == one) & (second == other)) | ((first == other) & (second == one))

    def repeats_training(self) -> np.ndarray:
        """Whether each test image has a near-duplicate in the training split, bool [T]."""
        pairs = self.pairs.select(self.crosses("train", "test"))
        return np.isin(self.data.indices("test"), [*pairs.first, *pairs.second])


def count_findings(findings: Findings) -> AuditMetrics:
    """Compute the numbers of an audit."""
    data, pairs, labels = findings.data, findings.pairs, findings.labels
    first, second = pairs.first, pairs.second
    fresh = ~findings.repeats_training()
    per_class = np.bincount(data.labels[data.indices("train")], minlength=len(data.classes))
    optional: dict[str, Any] = {}
    if labels is not None:
        optional |= {"labels_checked": len(labels.indices), "label_errors": len(labels.errors.indices)}
    if fresh.any():
        optional["accuracy_without_duplicates"] = float(findings.correct[fresh].mean())
    return AuditMetrics(
        images=len(data.labels),
        near_duplicates=int((findings.groups > 0).sum()),
        near_duplicate_pairs=len(first),
        near_duplicate_groups=int(findings.groups.max(initial=0)),
        pairs_across_splits=int((data.splits[first] != data.splits[second]).sum()),
        pairs_of_different_classes=int((data.labels[first] != data.labels[second]).sum()),
        class_imbalance=float(per_class.max() / per_class.min()),
        test_images=len(fresh),
        test_images_without_duplicates=int(fresh.sum()),
        accuracy=float(findings.correct.mean()),
        **optional,
    )
