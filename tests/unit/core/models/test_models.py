import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import recomputed
from vision.core.inference import autocast
from vision.core.models import classifier
from vision.core.models.convnet import ConvNet


def small_convnet(channels: int = 3, classes: int = 10) -> classifier.Classifier:
    return build("convnet", {"widths": [8, 16, 16], "depth": 2}, [32, 32, channels], classes)


def build(
    name: str, options: dict[str, object], shape: list[int] | None = None, classes: int = 10, size: int | None = None
) -> classifier.Classifier:
    torch.manual_seed(0)
    shape = shape or [32, 32, 3]
    return classifier.build(name, options, shape, classes, [0.4] * shape[-1], [0.2] * shape[-1], size)


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (48, 24), (5, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_image_size_gives_one_logit_a_class(height: int, width: int, channels: int) -> None:
    model = small_convnet(channels, classes=7)
    logits = model(torch.randint(0, 256, (4, height, width, channels), dtype=torch.uint8))
    assert logits.shape == (4, 7)
    assert logits.dtype == torch.float32


def test_normalisation_is_part_of_the_model() -> None:
    model = classifier.Classifier(nn.Identity(), mean=[0.5, 0.25, 0.0], std=[0.5, 0.1, 1.0])
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
    model = small_convnet()
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


# In bfloat16 a maximum of a pool may lie at another pixel, and its gradient goes there.
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_gradients_of_the_whole_net_agree_with_its_formulas_in_float64(dtype: torch.dtype, near: float) -> None:
    images, labels = pictures(200, 32, 32, 3), torch.arange(200) % 10
    model = build("convnet", {"widths": [16, 32, 32], "depth": 2}).train()
    model.initialize_from(images)
    with autocast(images.device, dtype):
        logits = model(images)
    F.cross_entropy(logits, labels, label_smoothing=0.1).backward()

    state = {name: value.detach().double().requires_grad_() for name, value in model.network.state_dict().items()}
    pixels = (images.double() / 255 - 0.4) / 0.2
    exact = recomputed.convnet(pixels.permute(0, 3, 1, 2), state, [16, 32, 32], depth=2, training=True)
    chances = exact.exp() / exact.exp().sum(1, keepdim=True)
    targets = 0.9 * torch.eye(10, dtype=torch.float64)[labels] + 0.1 / 10
    (-(targets * chances.log()).sum() / 200).backward()
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


def test_one_seed_gives_one_network() -> None:
    first, second = small_convnet().state_dict(), small_convnet().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


TUTORIAL = {
    "widths": [6, 16], "depth": 1, "kernel": 5, "padding": "valid", "batch_norm": False, "hidden": [120, 84],
    "dropout": 0.0,
}  # fmt: skip


def test_plain_can_be_the_net_of_pytorchs_tutorial() -> None:
    model = build("plain", TUTORIAL).eval()
    reference = nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    # Its parameters come in the order of the layers.
    values = dict(zip(reference.state_dict(), model.network.state_dict().values(), strict=True))
    reference.load_state_dict(values)
    images = pictures(4, 32, 32, 3)
    logits, expected = model(images), reference(model.normalized(images))
    assert torch.allclose(logits, expected, atol=1e-5)
    for each in (logits, expected):
        each.logsumexp(1).sum().backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)


def test_plain_drops_inputs_of_its_linear_layers_in_training_alone() -> None:
    model = build("plain", {**TUTORIAL, "dropout": 0.5})
    images = pictures(4, 32, 32, 3)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_plain_drops_so_many_and_scales_up_the_others(share: float) -> None:
    network = build("plain", {**TUTORIAL, "dropout": share}).network.train()
    torch.manual_seed(0)
    dropped, again = (network.dropped(torch.ones(200, 502)) for _ in range(2))  # type: ignore[operator]
    gone = dropped == 0
    assert torch.allclose(dropped[~gone], torch.tensor(1 / (1 - share)))
    assert gone.float().mean(0).flatten().std() < 1.5 * (share * (1 - share) / 200) ** 0.5
    # Whatever its place and its neighbours; four of them come from one number.
    neighbours = [(gone[:, k:] & gone[:, : 502 - k]).float().mean().item() for k in range(1, 6)]
    places = [gone[:, k::4].float().mean().item() for k in range(4)]
    assert places == pytest.approx([share] * 4, abs=0.01)
    assert [*neighbours, (gone & (again == 0)).float().mean().item()] == pytest.approx([share**2] * 6, abs=0.01)


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_plain_drops_next_to_nothing_and_nearly_all(share: float) -> None:
    network = build("plain", {**TUTORIAL, "dropout": share}).network.train()
    torch.manual_seed(0)
    dropped = network.dropped(torch.ones(10, 10))  # type: ignore[operator]
    assert dropped.isfinite().all()
    assert dropped.count_nonzero() == (100 if share < 0.5 else 0)


def test_plain_normalises_and_deepens_as_asked() -> None:
    deep = {**TUTORIAL, "depth": 2, "padding": "same", "batch_norm": True, "hidden": []}
    network = build("plain", deep).network
    kinds = [type(layer).__name__ for layer in network.modules()][2:-2]
    block = ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"]
    assert kinds == block * 2
    assert network.last.in_features == 16 * 8 * 8  # type: ignore[union-attr]


def test_plain_says_when_nothing_is_left_of_the_image() -> None:
    with pytest.raises(ValueError, match=r"^model.plain.widths: nothing is left of an image of 8x8 pixels"):
        build("plain", TUTORIAL, [8, 8, 3])


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_the_small_stem_looks_at_small_images_in_full(name: str) -> None:
    model = build(name, {"stem": "small"}, classes=7)
    assert model(pictures(2, 32, 32, 3)).shape == (2, 7)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))
    features: list[torch.Size] = []
    last = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    last.register_forward_hook(lambda module, inputs, output: features.append(output.shape))
    model(pictures(2, 32, 32, 3))
    assert features[0][-1] == {"resnet18": 4, "vgg11_bn": 2}[name]  # the standard resnet18 has 1 there
    assert sum(p.numel() for p in model.parameters()) < 12e6  # the standard vgg11_bn has 129 million


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet"])
def test_any_classifier_of_torchvision_trains_on_enlarged_images(name: str) -> None:
    model = build(name, {"stem": "standard"}, classes=7, size=64).train()
    logits = model(pictures(2, 32, 32, 3))
    assert logits.shape == (2, 7)
    logits.logsumexp(1).sum().backward()
    head = next(iter(model.head.parameters()))
    assert head.shape[0] == 7
    assert head.grad is not None


def test_enlarging_is_part_of_the_model_and_keeps_the_relation_of_the_sides() -> None:
    model = build("resnet18", {"stem": "standard"}, [32, 48, 3], size=64)
    assert model.normalized(pictures(1, 32, 48, 3)).shape == (1, 3, 64, 96)
    assert model.normalized(pictures(1, 16, 24, 3)).shape == (1, 3, 32, 48)  # shrunk images stay cheaper
    flat = model.normalized(torch.full((1, 32, 48, 3), 200, dtype=torch.uint8))
    assert flat.unique().numel() == 1


@pytest.mark.parametrize(
    ("name", "stem", "shape", "says"),
    [
        ("resnet17", "small", [32, 32, 3], "model.name: 'resnet17' is no network of this project and none of torchvis"),
        ("vit_b_16", "small", [32, 32, 3], "model.torchvision.stem: small is for ResNets and VGGs, vit_b_16 has only"),
        ("resnet18", "small", [32, 32, 1], "model.name: resnet18 takes images of 3 channels, not of 1"),
    ],
)
def test_what_there_is_not_is_said_with_its_parameter(name: str, stem: str, shape: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}"):
        build(name, {"stem": stem}, shape)
