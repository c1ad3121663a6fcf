import pytest
import torch
from torch import nn

from vision import models
from vision.models.convnet import ConvNet


def classifier(channels: int = 3, classes: int = 10, widths: tuple[int, ...] = (8, 16, 16)) -> models.Classifier:
    torch.manual_seed(0)
    mean, std = [0.4] * channels, [0.2] * channels
    return models.build("convnet", {"widths": list(widths), "depth": 2}, channels, classes, mean, std)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (48, 24), (5, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_image_size_gives_one_logit_a_class(height: int, width: int, channels: int) -> None:
    model = classifier(channels, classes=7)
    logits = model(torch.randint(0, 256, (4, height, width, channels), dtype=torch.uint8))
    assert logits.shape == (4, 7)
    assert logits.dtype == torch.float32


def test_normalisation_is_part_of_the_model() -> None:
    model = models.Classifier(nn.Identity(), mean=[0.5, 0.25, 0.0], std=[0.5, 0.1, 1.0])
    images = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    expected = (images.double() / 255 - torch.tensor([0.5, 0.25, 0.0])) / torch.tensor([0.5, 0.1, 1.0])
    normalized = model.normalized(images)
    assert torch.allclose(normalized.permute(0, 2, 3, 1).double(), expected, atol=1e-5)
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert {"scale", "offset"} <= set(model.state_dict())


def test_whitening_makes_the_first_layers_outputs_uncorrelated_with_variance_one() -> None:
    torch.manual_seed(0)
    mixing = torch.tensor([[1.0, 0.5, 0.2], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    smooth = nn.functional.avg_pool2d(torch.randn(500, 3, 18, 18), 3, 1)
    images = torch.einsum("nchw,cd->ndhw", smooth, mixing)
    net = ConvNet(channels=3, classes=2, widths=[4], depth=1)
    net.initialize_from(images, epsilon=1e-9)
    outputs = net.first(images).permute(1, 0, 2, 3).flatten(1)[:12]
    second_moments = outputs @ outputs.T / outputs.shape[1]
    assert torch.allclose(second_moments, torch.eye(12), atol=0.01)


def test_the_whitening_filters_are_frozen_and_the_rest_learns() -> None:
    model = classifier()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "network.first.weight" in frozen
    assert all("norms" in name and name.endswith("weight") for name in frozen - {"network.first.weight"})
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    model(torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)).logsumexp(1).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == trainable


def test_each_convolution_begins_by_passing_its_inputs_on() -> None:
    net = ConvNet(channels=3, classes=10, widths=[32, 16], depth=2)
    features = torch.randn(2, 64, 9, 9)
    for convolution in (m for m in net.blocks.modules() if isinstance(m, nn.Conv2d)):
        given = features[:, : convolution.in_channels]
        passed = min(convolution.in_channels, convolution.out_channels)
        assert torch.allclose(convolution(given)[:, :passed], given[:, :passed], atol=1e-6)


def test_depth_and_widths_shape_the_network() -> None:
    net = ConvNet(channels=3, classes=10, widths=[8, 16], depth=3)
    convolutions = [m for m in net.blocks.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (24, 8), (8, 8), (8, 8), (8, 16), (16, 16), (16, 16),
    ]  # fmt: skip


def test_one_seed_gives_one_network() -> None:
    first, second = classifier().state_dict(), classifier().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
