"""torchvision's classifiers, with a variant for small images."""

from collections.abc import Sequence

from torch import nn


def list_models() -> list[str]:
    """Return the names of all of torchvision's classifiers."""
    from torchvision import models

    return models.list_models(module=models)


def build_torchvision(name: str, image_shape: Sequence[int], classes: int, stem: str) -> nn.Module:
    """Build torchvision's network `name` with random weights.

    Args:
        name: one of `list_models()`.
        image_shape: [H, W, C]; C must be 3.
        classes: number of classes.
        stem: "standard" is torchvision's own, for images of about 224x224 pixels. "small" is for images of about 32x32
            pixels: a ResNet starts with a 3x3 convolution of stride 1 and no pooling (He et al. 2015, arXiv:1512.03385,
            for CIFAR-10), and a VGG ends with a single linear layer.

    Raises:
        ValueError: torchvision has no such network, or the network has no such stem. The message names the parameter.
    """
    from torchvision import models

    if name not in list_models():
        raise ValueError(f"model.name: {name!r} is neither a network of this project nor one of torchvision's")
    if image_shape[-1] != 3:
        raise ValueError(f"model.name: {name} needs images with 3 channels, these have {image_shape[-1]}")
    # Auxiliary classifiers would need a loss of their own.
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = models.get_model(name, num_classes=classes, **options)
    if stem == "standard":
        return network
    if isinstance(network, models.ResNet):
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    elif isinstance(network, models.VGG):
        network.avgpool = nn.AdaptiveAvgPool2d(1)
        network.classifier = nn.Linear(512, classes)
    else:
        raise ValueError(f"model.torchvision.stem: small is for ResNets and VGGs; use standard for {name}")
    return network
