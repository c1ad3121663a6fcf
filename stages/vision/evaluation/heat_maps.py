"""Heat maps: which parts of an image raise the score of a class, by Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391).

The gradients are computed by captum. A map has the size of the feature map that it is computed from, because a larger
one would only look more exact.
"""

from collections.abc import Callable

import numpy as np
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from vision.core.models.classifier import Classifier
from vision.pipeline.progress import bar
from vision.storage.arrays import HeatMaps

MAX_HEAT_MAPS = 500
"""As many mistakes as the report can show."""
_MIN_SIDE = 7
"""Rows and columns that a feature map should have. Grad-CAM was introduced for maps of 14x14 or 7x7."""
_BATCH_SIZE = 100


def explain_mistakes(model: Classifier, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> HeatMaps:
    """Compute a heat map of the predicted class for the most confident mistakes, with a progress bar.

    Args:
        model: in evaluation mode, on its device.
        images: uint8 [N, H, W, C].
        labels: integer [N], the actual classes.
        probabilities: float [N, classes].

    Returns:
        At most `MAX_HEAT_MAPS` maps, the most confident mistake first.
    """
    predicted = probabilities.argmax(1)
    errors = np.flatnonzero(predicted != labels)
    errors = errors[np.argsort(-probabilities[errors].max(1), kind="stable")][:MAX_HEAT_MAPS]
    if not len(errors):
        return HeatMaps(errors, np.zeros((0, 1, 1), np.uint8))
    device = model.temperature.device
    with bar(total=len(errors), unit=" images", description="evaluate: heat maps") as progress_bar:
        on_device, targets = (torch.from_numpy(array[errors]).to(device) for array in (images, predicted))
        heat = grad_cam(model, on_device, targets, progress_bar.update)
    return HeatMaps(errors, (255 * heat).round().to(torch.uint8).numpy())


def grad_cam(
    model: nn.Module, images: Tensor, classes: Tensor, on_batch: Callable[[int], object] = lambda images: None
) -> Tensor:
    """Compute a heat map for each image.

    Args:
        model: in evaluation mode; maps images to logits [N, classes] and has a convolution.
        images: uint8 [N, H, W, C], N >= 1, on the model's device.
        classes: int64 [N], the class to explain for each image.
        on_batch: called with the number of images of each batch.

    Returns:
        float32 [N, h, w] in [0, 1] on the CPU. In each map, 1 is the part that raises the class's score most; a map
        without such a part is 0.
    """
    method = LayerGradCam(model, find_layer(model, images[:1]))
    maps = []
    for batch, targets in zip(images.split(_BATCH_SIZE), classes.split(_BATCH_SIZE), strict=True):
        maps.append(method.attribute(batch, target=targets, relu_attributions=True).detach()[:, 0].float().cpu())
        on_batch(len(batch))
    heat = torch.cat(maps)
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def find_layer(model: nn.Module, image: Tensor) -> nn.Module:
    """Find the last convolution whose feature map has at least 7 rows and columns, or else the largest map.

    Args:
        model: the network.
        image: uint8 [1, H, W, C].
    """
    sides: dict[nn.Module, int] = {}  # in the order of the calls
    hooks = [
        module.register_forward_hook(lambda layer, _, output: sides.update({layer: min(output.shape[2:])}))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.inference_mode():
        model(image)
    for hook in hooks:
        hook.remove()
    large_enough = [layer for layer, side in sides.items() if side >= _MIN_SIDE]
    return large_enough[-1] if large_enough else max(sides, key=lambda layer: sides[layer])
