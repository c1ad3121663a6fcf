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


def batches_per_epoch(examples: Examples, batch_size: int) -> int:
    """How many batches `shuffled_batches` yields: whole ones, or a single smaller one where there are too few."""
    return max(1, len(examples.labels) // batch_size)


def shuffled_batches(examples: Examples, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """One epoch in random order.

    The last, incomplete batch is left out: its few images would get a step, and batch statistics, of their own. The
    next epoch shuffles anew.
    """
    images, labels = examples
    order = torch.randperm(len(labels), generator=generator, device=labels.device)
    # Rows of a 2-D table are copied as blocks of memory; indexing images directly is a hundred times slower on a CPU.
    table = images.view(len(images), -1)
    for batch in range(batches_per_epoch(examples, batch_size)):
        numbers = order[batch * batch_size : (batch + 1) * batch_size]
        chosen = table.index_select(0, numbers).view(-1, *images.shape[1:])
        yield Batch(chosen, labels[numbers], numbers)
