"""The search for near-duplicates and outliers, with progress bars."""

from typing import NamedTuple

import torch

from vision.audit.duplicates import Pairs, compare_pixels, find_candidates, select_pairs
from vision.audit.embeddings import embed, whiten
from vision.audit.neighbors import nearest_neighbors
from vision.audit.outliers import Outliers, rank_outliers
from vision.core.models.classifier import Classifier
from vision.pipeline.progress import bar

NEIGHBORS = 10


class Similarity(NamedTuple):
    """The near-duplicates, the highest correlation first, and the outliers."""

    pairs: Pairs
    outliers: Outliers


def search(model: Classifier, images: torch.Tensor, batch_size: int, dtype: torch.dtype) -> Similarity:
    """Compare all images with each other.

    Args:
        model: the classifier, in evaluation mode, on the device to compute on.
        images: uint8 [N, H, W, C], on any device.
        batch_size: images that the model gets at once.
        dtype: what convolutions and matrix products are computed in.
    """
    with bar(len(images), " images", "audit: features") as progress:
        features = whiten(embed(model, images, batch_size, dtype, progress.update)).to(dtype)
    with bar(len(images), " images", "audit: neighbors by features") as progress:
        near = nearest_neighbors(len(images), NEIGHBORS, lambda part: features[part] @ features.T, progress.update)
    images = images.to(features.device)
    with bar(len(images), " images", "audit: neighbors by pixels") as progress:
        pairs, mirrored = find_candidates(near, images, dtype, progress.update)
    with bar(len(pairs), " pairs", "audit: compare pixels") as progress:
        correlation = compare_pixels(images, pairs, mirrored, progress.update)
    return Similarity(select_pairs(pairs, correlation), rank_outliers(near))
