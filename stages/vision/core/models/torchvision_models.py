"""torchvision's classifiers by their names there, with a beginning of their own for small images."""

from collections.abc import Sequence

from torch import nn


def names() -> list[str]:
    """The names of all of torchvision's classifiers."""
    from torchvision import models

    return models.list_models(module=models)


def build_torchvision(name: str, image_shape: Sequence[int], classes: int, stem: str) -> nn.Module:
    """Make torchvision's network `name` with random weights.

    The `stem` "standard" is torchvision's, for images of some 224x224 pixels. "small" is for images of about 32x32, as
    He et al. 2015 (arXiv:1512.03385) have it for CIFAR-10: a ResNet begins with a 3x3 convolution of stride 1 and does
    not pool after it; a VGG, whose first layers fit as they are, ends with one linear layer.

    Raises:
        ValueError: torchvision has no such network, or it has no such stem; the message names the parameter.
    """
    from torchvision import models

    if name not in names():
        raise ValueError(f"model.name: {name!r} is no network of this project and none of torchvision")
    if image_shape[-1] != 3:
        raise ValueError(f"model.name: {name} takes images of 3 channels, not of {image_shape[-1]}")
    # Auxiliary classifiers would need a loss of their own.
    alone = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = models.get_model(name, num_classes=classes, **alone)
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
        raise ValueError(f"model.torchvision.stem: small is for ResNets and VGGs, {name} has only standard")
    return network
