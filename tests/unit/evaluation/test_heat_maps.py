import pytest
import torch
from torch import Tensor, nn

from vision.core.models.classifier import InputSpec
from vision.core.models.registry import create_model
from vision.evaluation.heat_maps import find_layer, grad_cam
from vision.pipeline.params import load_params


class CornerNet(nn.Module):
    """Its first logit is the mean brightness of the upper left quarter, its second that of the lower right one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        nn.init.constant_(self.conv.weight, 1 / 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images.permute(0, 3, 1, 2).float())
        side = features.shape[-1] // 2
        return torch.stack([features[:, 0, :side, :side].mean((1, 2)), features[:, 1, side:, side:].mean((1, 2))], 1)


def test_the_map_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images.permute(0, 3, 1, 2).float() / 255)

    images = torch.randint(0, 256, (3, 12, 12, 3), dtype=torch.uint8)
    classes = torch.tensor([0, 3, 2])
    maps = grad_cam(Net().eval(), images, classes)
    assert maps.shape == (3, 10, 10)
    for image, label, heat in zip(images, classes.tolist(), maps, strict=True):
        features = model[0](image[None].permute(0, 3, 1, 2).float() / 255).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model[1:](features)[0, label], features)
        expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu()[0].detach()
        torch.testing.assert_close(heat, expected / expected.max())


def test_batches_are_reported_and_do_not_change_the_maps() -> None:
    model = CornerNet().eval()
    images = torch.randint(0, 256, (230, 8, 8, 3), dtype=torch.uint8)
    classes = torch.arange(230) % 2
    sizes: list[int] = []
    maps = grad_cam(model, images, classes, sizes.append)
    assert sizes == [100, 100, 30]
    torch.testing.assert_close(maps[150:151], grad_cam(model, images[150:151], classes[150:151]))
    assert maps.amax((1, 2)).eq(1).all()
    assert all(param.grad is None for param in model.parameters())


def test_an_image_that_nothing_speaks_for_has_an_empty_map() -> None:
    model = CornerNet().eval()
    nn.init.constant_(model.conv.bias, -1000)  # type: ignore[arg-type]
    maps = grad_cam(model, torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    assert maps.eq(0).all()


@pytest.mark.parametrize(("size", "side"), [(32, 7), (64, 7), (12, 11)])
def test_the_layer_of_the_default_network(size: int, side: int) -> None:
    options = load_params().model.convnet.model_dump()
    model = create_model("convnet", options, InputSpec([size, size, 3], [0.5] * 3, [0.25] * 3), 10).eval()
    image = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    layer = find_layer(model, image)
    outputs: list[Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(image)
    assert outputs[0].shape[2] == side
