"""The networks by name, and how a classifier is made from one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vision.core.models.classifier import Classifier, InputSpec
from vision.core.models.convnet import ConvNet
from vision.core.models.plain_cnn import PlainCNN, PlainCNNConfig
from vision.core.models.torchvision_models import build_torchvision

MAX_PARAMETERS = 10**9
"""The largest network of this project that `create_model` accepts. torchvision's have up to 644 million parameters."""

NETWORKS: dict[str, Callable[[Sequence[int], int, dict[str, Any]], nn.Module]] = {
    "convnet": lambda shape, classes, options: ConvNet(shape[-1], classes, **options),
    "plain_cnn": lambda shape, classes, options: PlainCNN(shape, classes, PlainCNNConfig(**options)),
}
"""This project's networks: functions of the image shape [H, W, C], the number of classes, and the options.

The options are the section of `model` in params.yaml that has the network's name.
"""


def create_model(name: str, options: dict[str, Any], inputs: InputSpec, classes: int) -> Classifier:
    """Create a classifier with random weights, drawn from PyTorch's global generator.

    Args:
        name: a key of `NETWORKS`, or the name of one of torchvision's classifiers.
        options: the parameters of the network's family; "stem" for torchvision.
        inputs: the images that it is given.
        classes: number of classes.

    Raises:
        ValueError: there is no such network, or it does not accept such images. The message names the parameter.
    """
    input_scale = 1.0 if inputs.image_size is None else inputs.image_size / min(inputs.image_shape[:2])
    *size, channels = inputs.image_shape
    network_shape = [*(round(input_scale * side) for side in size), channels]
    if name in NETWORKS:
        with torch.device("meta"):  # tensors without memory
            parameters = sum(param.numel() for param in NETWORKS[name](network_shape, classes, options).parameters())
        if parameters > MAX_PARAMETERS:
            raise ValueError(f"model.{name}: {parameters:,} parameters are more than {MAX_PARAMETERS:,}; use fewer")
        network = NETWORKS[name](network_shape, classes, options)
    else:
        network = build_torchvision(name, network_shape, classes, **options)
    return Classifier(network, inputs.mean, inputs.std, input_scale).to(memory_format=torch.channels_last)
