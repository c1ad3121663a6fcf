"""Color jitter: against torchvision image by image, and which amounts are drawn."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from vision.core.augment.color_jitter import Adjustment, ColorJitter, adjust_colors
from vision.core.augment.generators import make_cpu_generator

NAMES: tuple[Adjustment, ...] = ("brightness", "contrast", "saturation", "hue")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(image: Tensor, adjustments: list[tuple[Adjustment, float]]) -> Tensor:
    """The expected result for one image [H, W, C], by torchvision in float32."""
    planes = image.permute(2, 0, 1) / 255
    for name, amount in adjustments:
        planes = getattr(v2.functional, f"adjust_{name}")(planes, amount)
    return 255 * planes.permute(1, 2, 0)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])),
    order=st.permutations(NAMES),
    length=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_adjust_colors_agrees_with_torchvision_image_by_image(
    shape: tuple[int, int, int, int], order: list[Adjustment], length: int, seed: int
) -> None:
    images = noise(*shape, seed=seed)
    count = len(images)
    drawn = torch.rand(4, count, generator=seeded(seed))
    adjustments = [
        (name, unit - 0.5 if name == "hue" else 2 * unit)
        for name, unit in zip(order[:length], drawn[:length], strict=True)
    ]
    out = adjust_colors(images, adjustments)
    assert out.shape == images.shape
    for i in range(count):
        expected = reference(images[i], [(name, float(amounts[i])) for name, amounts in adjustments])
        assert torch.allclose(out[i], expected, atol=0.05)
    moved = images.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(adjust_colors(moved, adjustments), adjust_colors(moved.contiguous(), adjustments)), (
        "whatever the memory order"
    )


def test_hue_agrees_with_torchvision_for_all_kinds_of_colors() -> None:
    levels = [0, 1, 127, 254, 255]
    image = torch.tensor(list(itertools.product(levels, levels, levels)), dtype=torch.uint8)[None]
    for turn in (-0.5, -0.31, 0.0, 1 / 6, 0.5):
        out = adjust_colors(image[None], [("hue", torch.tensor([turn]))])[0]
        assert torch.allclose(out, reference(image, [("hue", turn)]), atol=0.01)


def test_the_argument_is_unchanged() -> None:
    images = noise(2, 4, 4, 3).float().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    before = images.clone()
    for name in NAMES:
        adjust_colors(images, [(name, torch.full((2,), 0.3))])
        assert torch.equal(images, before)


def test_torchvision_on_uint8_differs_by_less_than_two_levels() -> None:
    images = noise(3, 8, 8, 3)
    for name in NAMES[:3]:
        out = adjust_colors(images, [(name, torch.full((3,), 1.3))])
        bytes_ = torch.stack([getattr(v2.functional, f"adjust_{name}")(i.permute(2, 0, 1), 1.3) for i in images])
        lower = out - bytes_.permute(0, 2, 3, 1)
        assert -1 < lower.min() <= lower.max() < 2


def test_factors_and_hues_are_uniform_and_differ_between_images() -> None:
    gray = torch.full((4000, 2, 2, 3), 100, dtype=torch.uint8)
    factors = ColorJitter([0.2, 0, 0, 0], seeded(0))(gray)[:, 0, 0, 0] / 100
    assert 0.8 <= factors.min() < 0.801
    assert 1.199 < factors.max() <= 1.2
    assert factors.mean().item() == pytest.approx(1, abs=0.01)
    assert factors.std().item() == pytest.approx(0.4 / 12**0.5, abs=0.01)
    # A factor is never negative: a strength of 1.5 gives [0, 2.5].
    factors = ColorJitter([1.5, 0, 0, 0], seeded(0))(gray)[:, 0, 0, 0] / 100
    assert factors.mean().item() == pytest.approx(1.25, abs=0.05)
    # Red shifted by up to 1/10 of the circle: green or blue rises to at most 0.6 of red.
    red = torch.tensor([200, 0, 0], dtype=torch.uint8).expand(4000, 2, 2, 3)
    out = ColorJitter([0, 0, 0, 0.1], seeded(0))(red)[:, 0, 0] / 200
    assert torch.allclose(out[:, 0], torch.ones(4000))
    difference = out[:, 1] - out[:, 2]
    assert difference.abs().max().item() == pytest.approx(0.6, abs=0.01)
    assert difference.mean().item() == pytest.approx(0, abs=0.03)
    assert difference.std().item() == pytest.approx(1.2 / 12**0.5, abs=0.02)


def test_the_order_of_the_adjustments_is_random_for_each_batch() -> None:
    black_and_white = torch.tensor([[0] * 3, [255] * 3], dtype=torch.uint8)[None, None]
    jitter, draws = ColorJitter([0.9, 0.9, 0, 0], seeded(0)), seeded(0)
    make_cpu_generator(draws)  # as ColorJitter does
    orders: tuple[tuple[Adjustment, Adjustment], ...] = (("brightness", "contrast"), ("contrast", "brightness"))
    found = set()
    for _ in range(20):
        out = jitter(black_and_white)
        factors = [0.1 + 1.8 * torch.rand(1, generator=draws) for _ in range(2)]
        found |= {
            order
            for order in orders
            if torch.allclose(out, adjust_colors(black_and_white, list(zip(order, factors, strict=True))), atol=1e-3)
        }
    assert found == set(orders)


def test_the_seed_determines_the_result() -> None:
    images = noise(10, 4, 4, 3)
    first, again, other = (ColorJitter([0.4, 0.4, 0.4, 0.1], seeded(seed))(images) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0] - first[1], torch.zeros_like(first[0]))


def test_strength_zero_leaves_images_unchanged_and_draws_no_random_numbers() -> None:
    images, generator = noise(4, 8, 8, 3), seeded(0)
    before = generator.get_state()
    assert ColorJitter([0, 0, 0, 0], generator)(images) is images
    assert torch.equal(generator.get_state(), before)
