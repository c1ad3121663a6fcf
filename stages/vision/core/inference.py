"""Batched inference; more views are averaged of images that the network is unsure of (test-time augmentation)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from vision.core.augment.crop_flip import shift_and_flip
from vision.core.config import TTA, TTAConfig

_OTHERS: dict[TTA, list[tuple[int, bool, float]]] = {
    "none": [],
    "flip": [(0, True, 1 / 2)],
    "shift": [(0, True, 1 / 4), *((pixels, mirrored, 1 / 8) for pixels in (-1, 1) for mirrored in (False, True))],
}
"""The views beside the image itself: pixels that it is shifted down and right, whether it is mirrored, the weight."""


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Compute convolutions and matrix products in `dtype` within the block; float32 leaves everything as it is."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Tensor,
    batch_size: int,
    dtype: torch.dtype,
    on_batch: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """Compute the logits of all images as they are, the model in evaluation mode.

    Args:
        model: maps images [B, H, W, C] to logits [B, classes].
        images: uint8 [N, H, W, C] on the device of the model.
        batch_size: images a step.
        dtype: what convolutions are computed in.
        on_batch: told how many images each step has done.

    Returns:
        float32 [N, classes].
    """
    was_training = model.training
    model.eval()
    parts = []
    with autocast(images.device, dtype):
        for batch in images.split(batch_size):
            parts.append(model(batch))
            on_batch(len(batch))
    model.train(was_training)
    return torch.cat(parts)


@torch.inference_mode()
def predict_tta(
    model: nn.Module,
    images: Tensor,
    logits: Tensor,
    config: TTAConfig,
    on_batch: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """Average the logits of the images that the network is least sure of over more views of them.

    "flip" is the image and its mirror image; "shift" those two (half the weight) and both again shifted by one pixel
    up and left, and down and right (Jordan 2024, arXiv:2404.00498).

    Args:
        model: maps images [B, H, W, C] to logits [B, classes].
        images: uint8 [N, H, W, C] on the device of the model.
        logits: what `predict` said of them, [N, classes].
        config: which views, of which fraction of the images.
        on_batch: called with the number of views of each step; `count_extra_views` gives their total.

    Returns:
        float32 [N, classes]; rows of images that are not looked at again are those of `logits`.
    """
    again = logits.softmax(1).amax(1).topk(round(config.fraction * len(images)), largest=False).indices
    if len(again) == 0:
        return logits
    result = logits.clone()
    result[again] *= 1 - sum(weight for _, _, weight in _OTHERS[config.tta])
    table = images.view(len(images), -1)  # see batches.handfuls
    for numbers in again.split(config.batch_size):
        chosen = table.index_select(0, numbers).view(-1, *images.shape[1:])
        for pixels, mirrored, weight in _OTHERS[config.tta]:
            moved = torch.full_like(numbers, pixels)
            sides = torch.full_like(moved, True, dtype=torch.bool) if mirrored else None
            view = shift_and_flip(chosen, moved, moved, sides, abs(pixels))
            result[numbers] += weight * predict(model, view, config.batch_size, config.dtype)
            on_batch(len(numbers))
    return result


def count_extra_views(images: int, config: TTAConfig) -> int:
    """Count the views that `predict_tta` computes for so many images."""
    return len(_OTHERS[config.tta]) * round(config.fraction * images)
