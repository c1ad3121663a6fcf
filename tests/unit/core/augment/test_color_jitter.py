"""Colour jitter: against torchvision image by image, and what is drawn."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from vision.core.augment.color_jitter import Change, ColorJitter, recoloured
from vision.core.augment.generators import host_generator

NAMES: tuple[Change, ...] = ("brightness", "contrast", "saturation", "hue")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(image: Tensor, changes: list[tuple[Change, float]]) -> Tensor:
    """The same for one image [H, W, C] by torchvision, in floats."""
    planes = image.permute(2, 0, 1) / 255
    for name, amount in changes:
        planes = getattr(v2.functional, f"adjust_{name}")(planes, amount)
    return 255 * planes.permute(1, 2, 0)


@given(
    count=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    order=st.permutations(NAMES),
    length=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_recoloured_agrees_with_torchvision_image_by_image(
    count: int, height: int, width: int, channels: int, order: list[Change], length: int, seed: int
) -> None:
    images = noise(count, height, width, channels, seed=seed)
    drawn = torch.rand(4, count, generator=seeded(seed))
    changes = [
        (name, unit - 0.5 if name == "hue" else 2 * unit)
        for name, unit in zip(order[:length], drawn[:length], strict=True)
    ]
    out = recoloured(images, changes)
    assert out.shape == images.shape
    for i in range(count):
        expected = reference(images[i], [(name, float(amounts[i])) for name, amounts in changes])
        assert torch.allclose(out[i], expected, atol=0.05)
    moved = images.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(recoloured(moved, changes), recoloured(moved.contiguous(), changes)), "whatever the memory order"


def test_every_kind_of_hue_is_turned_as_torchvision_does() -> None:
    levels = [0, 1, 127, 254, 255]
    image = torch.tensor(list(itertools.product(levels, levels, levels)), dtype=torch.uint8)[None]
    for turn in (-0.5, -0.31, 0.0, 1 / 6, 0.5):
        out = recoloured(image[None], [("hue", torch.tensor([turn]))])[0]
        assert torch.allclose(out, reference(image, [("hue", turn)]), atol=0.01)


def test_what_is_given_stays_as_it_was() -> None:
    images = noise(2, 4, 4, 3).float().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    before = images.clone()
    for name in NAMES:
        recoloured(images, [(name, torch.full((2,), 0.3))])
        assert torch.equal(images, before)


def test_the_bytes_that_torchvision_computes_are_less_than_two_levels_lower() -> None:
    images = noise(3, 8, 8, 3)
    for name in NAMES[:3]:
        out = recoloured(images, [(name, torch.full((3,), 1.3))])
        bytes_ = torch.stack([getattr(v2.functional, f"adjust_{name}")(i.permute(2, 0, 1), 1.3) for i in images])
        lower = out - bytes_.permute(0, 2, 3, 1)
        assert -1 < lower.min() <= lower.max() < 2


def test_factors_and_hues_are_drawn_evenly_for_each_image() -> None:
    gray = torch.full((4000, 2, 2, 3), 100, dtype=torch.uint8)
    factors = ColorJitter([0.2, 0, 0, 0], seeded(0))(gray)[:, 0, 0, 0] / 100
    assert 0.8 <= factors.min() < 0.801
    assert 1.199 < factors.max() <= 1.2
    assert factors.mean().item() == pytest.approx(1, abs=0.01)
    assert factors.std().item() == pytest.approx(0.4 / 12**0.5, abs=0.01)
    # A factor is never negative: of a strength of 1.5, all of [0, 2.5].
    factors = ColorJitter([1.5, 0, 0, 0], seeded(0))(gray)[:, 0, 0, 0] / 100
    assert factors.mean().item() == pytest.approx(1.25, abs=0.05)
    # Red turned by up to a tenth towards yellow or pink: the other channels rise to 0.6 of it.
    red = torch.tensor([200, 0, 0], dtype=torch.uint8).expand(4000, 2, 2, 3)
    out = ColorJitter([0, 0, 0, 0.1], seeded(0))(red)[:, 0, 0] / 200
    assert torch.allclose(out[:, 0], torch.ones(4000))
    sixths = out[:, 1] - out[:, 2]
    assert sixths.abs().max().item() == pytest.approx(0.6, abs=0.01)
    assert sixths.mean().item() == pytest.approx(0, abs=0.03)
    assert sixths.std().item() == pytest.approx(1.2 / 12**0.5, abs=0.02)


def test_the_order_of_the_changes_varies_from_batch_to_batch() -> None:
    black_and_white = torch.tensor([[0] * 3, [255] * 3], dtype=torch.uint8)[None, None]
    jitter, draws = ColorJitter([0.9, 0.9, 0, 0], seeded(0)), seeded(0)
    host_generator(draws)  # as ColorJitter makes one
    orders: tuple[tuple[Change, Change], ...] = (("brightness", "contrast"), ("contrast", "brightness"))
    found = set()
    for _ in range(20):
        out = jitter(black_and_white)
        factors = [0.1 + 1.8 * torch.rand(1, generator=draws) for _ in range(2)]
        found |= {
            order
            for order in orders
            if torch.allclose(out, recoloured(black_and_white, list(zip(order, factors, strict=True))), atol=1e-3)
        }
    assert found == set(orders)


def test_one_seed_gives_the_same_colours_and_another_seed_others() -> None:
    images = noise(10, 4, 4, 3)
    first, again, other = (ColorJitter([0.4, 0.4, 0.4, 0.1], seeded(seed))(images) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0] - first[1], torch.zeros_like(first[0]))


def test_without_jitter_images_are_not_touched_and_nothing_is_drawn() -> None:
    images, generator = noise(4, 8, 8, 3), seeded(0)
    before = generator.get_state()
    assert ColorJitter([0, 0, 0, 0], generator)(images) is images
    assert torch.equal(generator.get_state(), before)
