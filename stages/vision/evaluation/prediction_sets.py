"""Conformal prediction sets: for each image, the classes that it may belong to.

The sets contain the actual class of a given share of the images, whatever the model, if the validation images and the
new images are of the same kind (Sadinle, Lei and Wasserman 2019, "Least Ambiguous Set-Valued Classifiers With Bounded
Error Levels"). An image that looks like no class gets an empty set.
"""

import warnings

import numpy as np
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin

COVERAGE = 0.9
"""The share of images whose set contains the actual class."""
_MIN_IMAGES = 10
"""Validation images. With fewer, no threshold guarantees the coverage."""


class _Probabilities(ClassifierMixin, BaseEstimator):
    """A classifier in scikit-learn's form, whose features are the probabilities that it returns."""

    def __init__(self, classes: int) -> None:
        self.classes_ = np.arange(classes)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities

    def predict(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities.argmax(1)


def prediction_sets(val_labels: np.ndarray, val_probabilities: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Compute the sets of images, with the threshold that validation images need for `COVERAGE`.

    Args:
        val_labels: int [M], the actual classes of the validation images.
        val_probabilities: float [M, classes]; each row sums to 1.
        probabilities: float [N, classes], of other images.

    Returns:
        bool [N, classes]: whether the class is in the set of the image. With fewer than 10 validation images, each set
        holds all classes.
    """
    if len(val_labels) < _MIN_IMAGES:
        return np.ones(probabilities.shape, dtype=bool)
    classifier = _Probabilities(probabilities.shape[1])
    conformal = SplitConformalClassifier(classifier, confidence_level=COVERAGE, conformity_score="lac", prefit=True)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # not every class may have validation images
        conformal.conformalize(val_probabilities, val_labels)
        _, sets = conformal.predict_set(probabilities)
    return sets[:, :, 0]
