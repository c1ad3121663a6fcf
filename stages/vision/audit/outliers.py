"""Outliers: images unlike all others."""

from dataclasses import dataclass

import numpy as np

from vision.audit.neighbors import Neighbors

MAX_OUTLIERS = 500
MAX_SHARE = 0.01
"""Share of the images that are listed, at most `MAX_OUTLIERS`."""


@dataclass(frozen=True)
class Outliers:
    """The most unusual images, the most unusual first: `indices` int64 [M], mean `distances` float32 [M]."""

    indices: np.ndarray
    distances: np.ndarray


def rank_outliers(neighbors: Neighbors) -> Outliers:
    """Rank the images by their mean cosine distance to their nearest neighbors.

    This is the score of cleanlab's OutOfDistribution without labels (Kuan and Mueller 2022, "Back to the Basics:
    Revisiting Out-of-Distribution Detection Baselines", arXiv:2207.03061).
    """
    distances = (1 - neighbors.similarities.mean(1)).cpu().numpy()
    count = min(MAX_OUTLIERS, int(np.ceil(MAX_SHARE * len(distances))))
    indices = np.argsort(-distances, kind="stable")[:count]
    return Outliers(indices, distances[indices])
