"""The data loader: the whole data set is on the device as uint8, and an epoch is a permutation of its indices."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vision.core.augment.pipeline import Augmentation

_CHUNK_SIZE = 512
"""Images that are gathered and augmented together, if a batch is smaller than that."""


class ImageDataset(NamedTuple):
    """Labeled images on one device: `images` uint8 [N, H, W, C] and `labels` int64 [N]."""

    images: Tensor
    labels: Tensor


class Batch(NamedTuple):
    """A batch as the network gets it.

    Attributes:
        images: [B, H, W, C], uint8 or float32, in [0, 255].
        labels: int64 [B].
        indices: int64 [B], the position of each image in the data set.
        other_labels: int64 [B], the label of the image that was mixed in; None without MixUp and CutMix.
        weights: float32 [B], the fraction of the image that belongs to `labels`; None without MixUp and CutMix.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    other_labels: Tensor | None = None
    weights: Tensor | None = None


def batches_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of complete batches of `num_images` images, or 1 if there are fewer than one batch."""
    return max(1, num_images // batch_size)


def epoch_indices(candidates: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Shuffle the image indices of an epoch.

    The images of an incomplete last batch are dropped, because they would get a step and batch statistics of their
    own. If there is only one batch, it may be incomplete.

    Args:
        candidates: int64 [M], the indices to choose from.
        batch_size: images per batch.
        generator: on the device of `candidates`.

    Returns:
        int64 [K] with K <= M.
    """
    order = candidates[torch.randperm(len(candidates), generator=generator, device=candidates.device)]
    return order[: batches_per_epoch(len(candidates), batch_size) * batch_size]


def iter_batches(
    dataset: ImageDataset, indices: Tensor, batch_size: int, augmentation: Augmentation | None = None
) -> Iterator[list[Batch]]:
    """Yield the batches of an epoch, in lists of one or more.

    Several small batches are gathered and augmented at once, because for small batches the overhead per operation
    dominates. All random numbers of a list are drawn before it is yielded.

    Args:
        dataset: the images and labels.
        indices: int64 [M], the images to yield, in this order.
        batch_size: images per batch. The last batch is smaller if M is not a multiple of it.
        augmentation: applied to the images; None leaves them as they are.
    """
    images, labels = dataset
    # Rows of a 2-D table are copied as blocks of memory. Indexing `images` directly is a hundred times slower on a CPU.
    table = images.view(len(images), -1)
    for chunk in indices.split(batch_size * max(1, _CHUNK_SIZE // batch_size)):
        chunk_images = table.index_select(0, chunk).view(-1, *images.shape[1:])
        if augmentation is not None:
            chunk_images = augmentation.transform(chunk_images, chunk)
        columns = (values.split(batch_size) for values in (chunk_images, labels[chunk], chunk))
        batches = list(map(Batch, *columns))
        yield batches if augmentation is None else [_mix(batch, augmentation) for batch in batches]


def _mix(batch: Batch, augmentation: Augmentation) -> Batch:
    images, other_labels, weights = augmentation.mix(batch.images, batch.labels)
    return batch._replace(images=images, other_labels=other_labels, weights=weights)
