"""Whether one classifier is more accurate than another, tested on the same images.

`compare_models` is about two trained models and new images of the same kind. `compare_seeds` is about two sets of
parameters and new seeds. benchmarks/significance.py shows how often both are wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm, ttest_1samp


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies, second minus first.

    Attributes:
        value: the difference, in [-1, 1].
        low: lower end of the 95% confidence interval.
        high: upper end of the 95% confidence interval.
        p_value: how probable a difference of this size or more is if there is none.
    """

    value: float
    low: float
    high: float
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the difference is unlikely to be chance, at the level of 5%."""
        return self.p_value < 0.05


def compare_models(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Difference:
    """Compare two models by the images that only one of them classifies correctly.

    The test is McNemar's, in its exact form. The interval is that of Agresti and Min for matched pairs (2005, "Simple
    improved confidence intervals for comparing matched proportions"). Unlike the plain normal interval, it is not empty
    if both models are correct on the same images.

    Args:
        first: whether each image is classified correctly by the first model, bool [N].
        second: the same of the second model.
        confidence: of the interval.
    """
    lost, gained = int((first & ~second).sum()), int((second & ~first).sum())
    count, net = len(first) + 2, gained - lost
    error = math.sqrt(lost + gained + 1 - net**2 / count) / count
    half = norm.ppf((1 + confidence) / 2) * error
    p_value = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    return Difference(net / len(first), float(net / count - half), float(net / count + half), float(p_value))


def compare_seeds(differences: Sequence[float]) -> Difference:
    """Compare two sets of parameters by the difference of their accuracies with each seed, by a paired t-test.

    A bootstrap of so few seeds would report a difference too often: with five seeds and no difference, in about 15 of
    100 cases instead of 5.

    Args:
        differences: second accuracy minus first accuracy, at least two.
    """
    if len(set(differences)) == 1:  # no spread, such as two copies of one experiment
        (value,) = set(differences)
        return Difference(value, value, value, 1.0 if value == 0 else 0.0)
    found = ttest_1samp(differences, 0)
    interval = found.confidence_interval(0.95)
    return Difference(float(np.mean(differences)), float(interval.low), float(interval.high), float(found.pvalue))
