"""Inference in batches, and test-time augmentation of the images with the lowest confidence."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vision.core.augment.crop_flip import shift_and_flip
from vision.core.config import TTA, TTAConfig


class _View(NamedTuple):
    """A view of an image: shifted by `shift` pixels down and to the right, flipped or not, and its weight."""

    shift: int
    flip: bool
    weight: float


_EXTRA_VIEWS: dict[TTA, list[_View]] = {
    "none": [],
    "flip": [_View(0, True, 1 / 2)],
    "shift": [
        _View(0, True, 1 / 4),
        _View(-1, False, 1 / 8),
        _View(-1, True, 1 / 8),
        _View(1, False, 1 / 8),
        _View(1, True, 1 / 8),
    ],
}
"""The views other than the image itself, which has the remaining weight."""


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Return a context in which convolutions and matrix products are computed in `dtype`; float32 changes nothing."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Tensor,
    batch_size: int,
    dtype: torch.dtype,
    on_batch: Callable[[int], object] = lambda num_images: None,
) -> Tensor:
    """Compute the logits of images, with the model in evaluation mode.

    Args:
        model: maps images [B, H, W, C] to logits [B, classes].
        images: uint8 [N, H, W, C] on the device of the model.
        batch_size: images per step.
        dtype: what convolutions are computed in.
        on_batch: called with the number of images of each step.

    Returns:
        float32 [N, classes].
    """
    was_training = model.training
    model.eval()
    logits = []
    with autocast(images.device, dtype):
        for batch in images.split(batch_size):
            logits.append(model(batch))
            on_batch(len(batch))
    model.train(was_training)
    return torch.cat(logits)


@torch.inference_mode()
def predict_tta(
    model: nn.Module,
    images: Tensor,
    logits: Tensor,
    config: TTAConfig,
    on_batch: Callable[[int], object] = lambda num_images: None,
) -> Tensor:
    """Average the logits of several views, for the images with the lowest maximum probability.

    "flip" averages an image and its mirror image. "shift" gives these two half of the weight, and the other half to
    both shifted by one pixel up and left, and down and right (Jordan 2024, arXiv:2404.00498).

    Args:
        model: maps images [B, H, W, C] to logits [B, classes].
        images: uint8 [N, H, W, C] on the device of the model.
        logits: float32 [N, classes], as `predict` returned them.
        config: which views, of which fraction of the images.
        on_batch: called with the number of views of each step; `count_extra_views` returns their sum.

    Returns:
        float32 [N, classes]; the rows of all other images are those of `logits`.
    """
    if count_extra_views(len(images), config) == 0:
        return logits
    extra_views = _EXTRA_VIEWS[config.tta]
    selected = logits.softmax(1).amax(1).topk(round(config.fraction * len(images)), largest=False).indices
    result = logits.clone()
    result[selected] *= 1 - sum(view.weight for view in extra_views)
    table = images.view(len(images), -1)  # faster to index than `images`, see `data.iter_batches`
    for indices in selected.split(config.batch_size):
        batch = table.index_select(0, indices).view(-1, *images.shape[1:])
        for view in extra_views:
            shift = torch.full_like(indices, view.shift)
            flip = torch.full_like(indices, True, dtype=torch.bool) if view.flip else None
            view_images = shift_and_flip(batch, shift, shift, flip, abs(view.shift))
            result[indices] += view.weight * predict(model, view_images, config.batch_size, config.dtype)
            on_batch(len(indices))
    return result


def count_extra_views(num_images: int, config: TTAConfig) -> int:
    """Return the number of views that `predict_tta` computes for `num_images` images."""
    return len(_EXTRA_VIEWS[config.tta]) * round(config.fraction * num_images)
