"""The network before the first training step: built as params.yaml says, initialized from the data or pretrained."""

from collections.abc import Sequence

import torch

from vision.artifacts.pretrained import PRETRAINED, load_pretrained, pretrained_image_size
from vision.artifacts.trained_model import ModelConfig, build_model
from vision.core import flops
from vision.core.augment.resize import resize_images
from vision.core.models.classifier import Classifier
from vision.pipeline.errors import UserError, resource_hint
from vision.pipeline.params import Model, Params
from vision.storage.arrays import Stats


def make_model(params: Params, stats: Stats, images: torch.Tensor) -> tuple[Classifier, ModelConfig]:
    """Build the network with its initial weights. The random ones depend on `params.seed`.

    Args:
        params: params.yaml.
        stats: of the data.
        images: the training images, uint8 [N, H, W, C], on the device for the network.

    Raises:
        UserError: there is no such network, it does not fit the images or the optimizer, or the weights do not fit it.
    """
    config = _make_model_config(params.model, stats)
    torch.manual_seed(params.seed)
    try:
        model = build_model(config)
    except ValueError as error:
        raise UserError(f"params.yaml: {error}") from None
    if params.train.optimizer.name == "muon" and not model.has_normalization_layers:
        raise UserError(
            "params.yaml: train.optimizer.name: muon keeps the norm of each filter fixed, so it needs a network with "
            f"normalization layers, and {config.name} has none; choose sgd, adam or adamw, and set train.lr for it"
        )
    model.to(images.device)
    model.initialize_from(images)
    if params.model.weights is not None:
        load_pretrained(model, config.name, params.model.weights)
    return model, config


def check_image_sizes(model: Classifier, image: torch.Tensor, scales: Sequence[float]) -> None:
    """Check that the network takes an image [1, H, W, C], uint8, at every scale.

    Raises:
        UserError: the image is too small at one of them.
    """
    for scale in scales:
        resized = resize_images(image, scale)
        try:
            flops.training_flops(model, resized)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torchvision's vision transformers
            if resource_hint(error):
                raise
            height, width = resized.shape[1:3]
            raise UserError(
                f"params.yaml: train.progressive_resizing: the network cannot take images of {height}x{width} pixels, "
                f"{scale:g} of their size ({str(error).splitlines()[0]}); set it to [1.0], or model.image_size higher"
            ) from None


def _make_model_config(params: Model, stats: Stats) -> ModelConfig:
    """Describe the network for images of this data."""
    image_size = params.image_size
    if image_size is None and params.weights == PRETRAINED:
        image_size = pretrained_image_size(params.name)
    return ModelConfig(
        name=params.name,
        options=getattr(params, params.family).model_dump(),
        classes=stats.classes,
        image_shape=stats.image_shape,
        mean=stats.mean,
        std=stats.std,
        image_size=image_size,
    )
