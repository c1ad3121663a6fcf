"""The loader: the whole data set lives on the device as uint8, and an epoch is a permutation of its indices."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class ImageDataset(NamedTuple):
    """Labelled images: `images` uint8 [N, H, W, C] and `labels` int64 [N], on one device."""

    images: Tensor
    labels: Tensor


class Batch(NamedTuple):
    """Some of the examples: `images` uint8 [B, H, W, C], `labels` int64 [B], and their `numbers` int64 [B]."""

    images: Tensor
    labels: Tensor
    numbers: Tensor


def batches_per_epoch(images: int, batch_size: int) -> int:
    """How many batches so many images make: whole ones, or a smaller one where there are too few for that."""
    return max(1, images // batch_size)


def epoch_indices(chosen: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """The image numbers `chosen`, int64 [M], in random order, as many as make whole batches: one epoch.

    The last, incomplete batch is left out: its few images would get a step, and batch statistics, of their own. The
    next epoch shuffles anew.
    """
    order = chosen[torch.randperm(len(chosen), generator=generator, device=chosen.device)]
    return order[: batches_per_epoch(len(chosen), batch_size) * batch_size]


def iter_batches(
    examples: ImageDataset,
    order: Tensor,
    batch_size: int,
    augment: Callable[[Tensor, Tensor], Tensor] = lambda images, numbers: images,
) -> Iterator[list[Batch]]:
    """The batches of the examples whose numbers are `order`, int64 [M], some at a time.

    Small batches are taken several at a time, as the operations cost more by their number than by their size. `augment`
    maps images [N, H, W, C] and their numbers [N] to images; it sees a handful at once, when that is asked for.
    """
    images, labels = examples
    # Rows of a 2-D table are copied as blocks of memory; indexing images directly is a hundred times slower on a CPU.
    table = images.view(len(images), -1)
    for numbers in order.split(batch_size * max(1, _AT_A_TIME // batch_size)):
        taken = augment(table.index_select(0, numbers).view(-1, *images.shape[1:]), numbers)
        parts = (values.split(batch_size) for values in (taken, labels[numbers], numbers))
        yield list(map(Batch, *parts))


_AT_A_TIME = 512
"""Images."""
