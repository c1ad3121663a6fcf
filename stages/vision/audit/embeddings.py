"""What the trained network knows about each image: the features that its last layer gets."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vision.core.inference import autocast
from vision.core.models.classifier import Classifier

_MIN_VARIANCE = 1e-4
"""Directions with less than this share of the mean variance are not scaled up further: they are mostly rounding."""


@torch.inference_mode()
def embed(
    model: Classifier,
    images: Tensor,
    batch_size: int,
    dtype: torch.dtype,
    on_batch: Callable[[int], object] = lambda num_images: None,
) -> Tensor:
    """Compute the input of the last layer, averaged over each image and its mirror image.

    Args:
        model: the classifier, in evaluation mode.
        images: uint8 [N, H, W, C], on any device.
        batch_size: images per step.
        dtype: what convolutions are computed in.
        on_batch: called with the number of images of each step.

    Returns:
        float32 [N, D] on the device of the model.
    """
    device = model.temperature.device
    features: list[Tensor] = []

    def keep(head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float()
        features.append(values.flatten(2).mean(2) if values.ndim > 2 else values)

    handle = model.head.register_forward_pre_hook(keep)
    result = []
    try:
        with autocast(device, dtype):
            for batch in images.split(batch_size):
                on_device = batch.to(device)
                for view in (on_device, on_device.flip(2)):
                    model(view)
                result.append((features[0] + features[1]) / 2)
                features.clear()
                on_batch(len(batch))
    finally:
        handle.remove()
    return torch.cat(result)


def whiten(features: Tensor) -> Tensor:
    """Make the features uncorrelated with variance 1, and give each image's features the length 1.

    The features of a trained network mainly tell the classes apart, so all images of a class are alike in them. After
    whitening, every direction counts the same, and only images that are alike in all of them are near each other.

    Args:
        features: float32 [N, D].

    Returns:
        float32 [N, D]; the scalar product of two rows is the cosine similarity of the images.
    """
    centered = features - features.mean(0)
    covariance = (centered.T @ centered / len(centered)).cpu().double()
    variances, directions = torch.linalg.eigh(covariance)
    scale = variances.clamp(min=_MIN_VARIANCE * float(variances.mean()) + 1e-12).rsqrt()
    return nn.functional.normalize(centered @ (directions * scale).to(features))
