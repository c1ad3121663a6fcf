"""Confidence intervals of shares, such as the accuracy."""

from typing import NamedTuple

from scipy.stats import binomtest


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Compute the confidence interval of a share of independent trials (Wilson 1927, without continuity correction).

    It says how much the share would change with other test images of the same kind. It does not include that another
    seed gives another model.

    Args:
        successes: such as the number of correct predictions.
        trials: such as the number of images.
        confidence: how often such intervals contain the true share.

    Returns:
        Values in [0, 1]; 0 and 1 if there are no trials.
    """
    if trials == 0:
        return Interval(0.0, 1.0)
    found = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))
