"""Temperature scaling: makes the probabilities of a trained network as high as its accuracy.

Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599).
"""

import math

import torch
from torch import Tensor

_LOWEST, _HIGHEST = 0.05, 20.0
_STEPS = 50


@torch.no_grad()
def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature T for which `softmax(logits / T)` has the lowest cross-entropy.

    The cross-entropy is convex in 1/T, so bisection of its derivative finds the minimum. One more image with a random
    label is assumed. Otherwise the probabilities would be 0 or 1 if all images are classified correctly.

    Args:
        logits: float [N, classes], of images that were not trained on.
        labels: int64 [N].

    Returns:
        The temperature in [0.05, 20]. Above 1 it lowers the confidence. The order of the classes stays.
    """
    wide = logits.double()
    smoothing = 1 / (len(labels) + 1)
    target_logit = (1 - smoothing) * wide.gather(1, labels[:, None]).mean() + smoothing * wide.mean()
    low, high = _LOWEST, _HIGHEST
    for _ in range(_STEPS):
        temperature = math.sqrt(low * high)
        expected_logit = ((wide / temperature).softmax(1) * wide).sum(1).mean()
        # The difference is the derivative of the cross-entropy by 1/T.
        if expected_logit > target_logit:
            low = temperature
        else:
            high = temperature
    return math.sqrt(low * high)
