"""Batched inference, with several views of each image averaged where asked (test-time augmentation)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from vision.augment import shift_and_flip

Views = Literal["one", "flip", "shift"]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Compute convolutions and matrix products in `dtype` within the block; float32 leaves everything as it is."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Tensor,
    batch_size: int,
    dtype: torch.dtype,
    views: Views = "one",
    on_batch: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """Compute the logits of all images, the model in evaluation mode.

    Args:
        model: maps images [B, H, W, C] to logits [B, classes].
        images: uint8 [N, H, W, C] on the device of the model.
        batch_size: images a step.
        dtype: what convolutions are computed in.
        views: "one"; "flip" averages the logits of the image and its mirror image; "shift" averages those two
            (half the weight) and both again shifted by one pixel up and left, and down and right.
        on_batch: told how many images each step has done.

    Returns:
        float32 [N, classes].
    """
    was_training = model.training
    model.eval()
    parts = []
    with autocast(images.device, dtype):
        for batch in images.split(batch_size):
            parts.append(_averaged(model, batch, views))
            on_batch(len(batch))
    model.train(was_training)
    return torch.cat(parts)


def _averaged(model: nn.Module, images: Tensor, views: Views) -> Tensor:
    if views == "one":
        return model(images)
    shifts = {0: 1.0} if views == "flip" else {0: 0.5, -1: 0.25, 1: 0.25}
    logits = []
    for pixels, weight in shifts.items():
        moved = torch.full((len(images),), pixels, device=images.device)
        for side in (False, True):
            mirrored = torch.full_like(moved, side, dtype=torch.bool)
            logits.append(weight / 2 * model(shift_and_flip(images, moved, moved, mirrored)))
    return torch.stack(logits).sum(0)
