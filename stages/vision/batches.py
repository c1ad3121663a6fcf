"""The loader: the whole data set lives on the device as uint8, and an epoch is a permutation of its indices."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Examples(NamedTuple):
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


def shuffled_batches(
    examples: Examples, chosen: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """One epoch of the examples whose numbers are `chosen`, int64 [M], in random order.

    The last, incomplete batch is left out: its few images would get a step, and batch statistics, of their own. The
    next epoch shuffles anew.
    """
    images, labels = examples
    order = chosen[torch.randperm(len(chosen), generator=generator, device=labels.device)]
    # Rows of a 2-D table are copied as blocks of memory; indexing images directly is a hundred times slower on a CPU.
    table = images.view(len(images), -1)
    for batch in range(batches_per_epoch(len(chosen), batch_size)):
        numbers = order[batch * batch_size : (batch + 1) * batch_size]
        yield Batch(table.index_select(0, numbers).view(-1, *images.shape[1:]), labels[numbers], numbers)
