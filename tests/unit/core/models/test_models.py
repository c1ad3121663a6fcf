import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import recomputed
from vision.core.inference import autocast
from vision.core.models.classifier import Classifier, InputSpec
from vision.core.models.convnet import ConvNet
from vision.core.models.plain_cnn import FastDropout
from vision.core.models.registry import create_model


def small_convnet(channels: int = 3, classes: int = 10) -> Classifier:
    return build("convnet", {"widths": [8, 16, 16], "depth": 2}, [32, 32, channels], classes)


def build(
    name: str, options: dict[str, object], shape: list[int] | None = None, classes: int = 10, size: int | None = None
) -> Classifier:
    torch.manual_seed(0)
    shape = shape or [32, 32, 3]
    inputs = InputSpec(shape, [0.4] * shape[-1], [0.2] * shape[-1], size)
    return create_model(name, options, inputs, classes)


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (48, 24), (5, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_image_size_gives_one_logit_per_class(height: int, width: int, channels: int) -> None:
    model = small_convnet(channels, classes=7)
    logits = model(torch.randint(0, 256, (4, height, width, channels), dtype=torch.uint8))
    assert logits.shape == (4, 7)
    assert logits.dtype == torch.float32


def test_normalization_is_part_of_the_model() -> None:
    model = Classifier(nn.Identity(), mean=[0.5, 0.25, 0.0], std=[0.5, 0.1, 1.0])
    images = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    expected = (images.double() / 255 - torch.tensor([0.5, 0.25, 0.0])) / torch.tensor([0.5, 0.1, 1.0])
    normalized = model.normalize(images)
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


def test_the_whitening_layer_is_frozen_and_the_rest_has_gradients() -> None:
    model = small_convnet()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "network.first.weight" in frozen
    assert all("norms" in name and name.endswith("weight") for name in frozen - {"network.first.weight"})
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    model(torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)).logsumexp(1).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == trainable


def test_convolutions_are_initialized_to_the_identity() -> None:
    net = ConvNet(channels=3, classes=10, widths=[32, 16], depth=2)
    features = torch.randn(2, 64, 9, 9)
    for convolution in (m for m in net.blocks.modules() if isinstance(m, nn.Conv2d)):
        inputs = features[:, : convolution.in_channels]
        common = min(convolution.in_channels, convolution.out_channels)
        assert torch.allclose(convolution(inputs)[:, :common], inputs[:, :common], atol=1e-6)


# In bfloat16 the maximum of a pooling window may be at another pixel, which then gets the gradient.
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_gradients_agree_with_the_formulas_in_float64(dtype: torch.dtype, near: float) -> None:
    images, labels = random_images(200, 32, 32, 3), torch.arange(200) % 10
    model = build("convnet", {"widths": [16, 32, 32], "depth": 2}).train()
    model.initialize_from(images)
    with autocast(images.device, dtype):
        logits = model(images)
    F.cross_entropy(logits, labels, label_smoothing=0.1).backward()

    state = {name: value.detach().double().requires_grad_() for name, value in model.network.state_dict().items()}
    pixels = (images.double() / 255 - 0.4) / 0.2
    exact = recomputed.convnet(pixels.permute(0, 3, 1, 2), state, [16, 32, 32], depth=2, training=True)
    probabilities = exact.exp() / exact.exp().sum(1, keepdim=True)
    targets = 0.9 * torch.eye(10, dtype=torch.float64)[labels] + 0.1 / 10
    (-(targets * probabilities.log()).sum() / 200).backward()
    assert (logits - exact).norm() < near / 5 * exact.norm()
    for name, p in model.network.named_parameters():
        if p.requires_grad:
            wanted = state[name].grad
            assert p.grad is not None
            assert wanted is not None
            assert (p.grad - wanted).norm() < near * wanted.norm(), name


def test_depth_and_widths_shape_the_network() -> None:
    net = ConvNet(channels=3, classes=10, widths=[8, 16], depth=3)
    convolutions = [m for m in net.blocks.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (24, 8), (8, 8), (8, 8), (8, 16), (16, 16), (16, 16),
    ]  # fmt: skip


def test_the_seed_determines_the_weights() -> None:
    first, second = small_convnet().state_dict(), small_convnet().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


TUTORIAL = {
    "widths": [6, 16], "depth": 1, "kernel": 5, "padding": "valid", "batch_norm": False, "hidden": [120, 84],
    "dropout": 0.0,
}  # fmt: skip


def test_plain_cnn_agrees_with_the_network_of_pytorchs_tutorial() -> None:
    model = build("plain_cnn", TUTORIAL).eval()
    reference = nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    # The parameters have the same order.
    values = dict(zip(reference.state_dict(), model.network.state_dict().values(), strict=True))
    reference.load_state_dict(values)
    images = random_images(4, 32, 32, 3)
    logits, expected = model(images), reference(model.normalize(images))
    assert torch.allclose(logits, expected, atol=1e-5)
    for output in (logits, expected):
        output.logsumexp(1).sum().backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)


def test_plain_cnn_uses_dropout_only_in_training() -> None:
    model = build("plain_cnn", {**TUTORIAL, "dropout": 0.5})
    images = random_images(4, 32, 32, 3)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_fast_dropout_drops_the_fraction_p_and_scales_up_the_others(p: float) -> None:
    dropout = FastDropout(p)
    torch.manual_seed(0)
    dropped, again = (dropout(torch.ones(200, 502)) for _ in range(2))
    zeros = dropped == 0
    assert torch.allclose(dropped[~zeros], torch.tensor(1 / (1 - p)))
    assert zeros.float().mean(0).flatten().std() < 1.5 * (p * (1 - p) / 200) ** 0.5
    # Independently of the position and of its neighbors, four of which share a random number.
    neighbors = [(zeros[:, k:] & zeros[:, : 502 - k]).float().mean().item() for k in range(1, 6)]
    positions = [zeros[:, k::4].float().mean().item() for k in range(4)]
    assert positions == pytest.approx([p] * 4, abs=0.01)
    assert [*neighbors, (zeros & (again == 0)).float().mean().item()] == pytest.approx([p**2] * 6, abs=0.01)


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_fast_dropout_with_p_near_zero_and_near_one(p: float) -> None:
    dropout = FastDropout(p)
    torch.manual_seed(0)
    dropped = dropout(torch.ones(10, 10))
    assert dropped.isfinite().all()
    assert dropped.count_nonzero() == (100 if p < 0.5 else 0)


def test_plain_cnn_with_batch_norm_and_depth() -> None:
    deep = {**TUTORIAL, "depth": 2, "padding": "same", "batch_norm": True, "hidden": []}
    network = build("plain_cnn", deep).network
    layers = [type(layer).__name__ for layer in network.features]  # type: ignore[union-attr]

    block = ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"]
    assert layers == block * 2
    assert network.last.in_features == 16 * 8 * 8  # type: ignore[union-attr]


def test_plain_cnn_rejects_images_that_are_too_small() -> None:
    with pytest.raises(ValueError, match=r"^model.plain_cnn.widths: an image of 8x8 pixels is too small for 2 blocks"):
        build("plain_cnn", TUTORIAL, [8, 8, 3])


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_the_small_stem_keeps_the_resolution_of_small_images(name: str) -> None:
    model = build(name, {"stem": "small"}, classes=7)
    assert model(random_images(2, 32, 32, 3)).shape == (2, 7)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))
    features: list[torch.Size] = []
    last = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    last.register_forward_hook(lambda module, inputs, output: features.append(output.shape))
    model(random_images(2, 32, 32, 3))
    assert features[0][-1] == {"resnet18": 4, "vgg11_bn": 2}[name]  # the standard resnet18 has 1 there
    assert sum(p.numel() for p in model.parameters()) < 12e6  # the standard vgg11_bn has 129 million


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet"])
def test_torchvisions_classifiers_have_gradients_on_resized_images(name: str) -> None:
    model = build(name, {"stem": "standard"}, classes=7, size=64).train()
    logits = model(random_images(2, 32, 32, 3))
    assert logits.shape == (2, 7)
    logits.logsumexp(1).sum().backward()
    head = next(iter(model.head.parameters()))
    assert head.shape[0] == 7
    assert head.grad is not None


def test_resizing_is_part_of_the_model_and_keeps_the_aspect_ratio() -> None:
    model = build("resnet18", {"stem": "standard"}, [32, 48, 3], size=64)
    assert model.normalize(random_images(1, 32, 48, 3)).shape == (1, 3, 64, 96)
    assert model.normalize(random_images(1, 16, 24, 3)).shape == (1, 3, 32, 48)  # smaller images stay smaller
    flat = model.normalize(torch.full((1, 32, 48, 3), 200, dtype=torch.uint8))
    assert flat.unique().numel() == 1


@pytest.mark.parametrize(
    ("name", "stem", "shape", "message"),
    [
        ("resnet17", "small", [32, 32, 3], "model.name: 'resnet17' is neither a network of this project nor one of"),
        (
            "vit_b_16",
            "small",
            [32, 32, 3],
            "model.torchvision.stem: small is for ResNets and VGGs; use standard",
        ),
        ("resnet18", "small", [32, 32, 1], "model.name: resnet18 needs images with 3 channels, these have 1"),
    ],
)
def test_an_unknown_network_or_stem_raises_an_error(name: str, stem: str, shape: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        build(name, {"stem": stem}, shape)
