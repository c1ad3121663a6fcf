"""The lowest confidence with which an image is still taken for one of the classes.

The confidence is the highest probability. Images unlike those of the training have lower ones (Hendrycks and Gimpel
2017, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples", arXiv:1610.02136).
"""

import torch
from torch import Tensor

KNOWN_SHARE = 0.95
"""The share of images of the known classes that reach the lowest confidence."""


@torch.no_grad()
def fit_min_confidence(logits: Tensor) -> float:
    """Find the highest confidence that `KNOWN_SHARE` of the images reach.

    Args:
        logits: float [N, classes], of images that were not trained on; their temperature is fitted.

    Returns:
        The confidence in [0, 1]. An image with a lower one is unknown.
    """
    confidence = logits.double().softmax(1).amax(1).sort().values
    return confidence[int((1 - KNOWN_SHARE) * len(confidence))].item()
