"""Cutout: against torchvision image by image, and which squares are drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from vision.core.augment.cutout import Cutout, erase


def numbered_images(count: int, height: int, width: int, channels: int) -> Tensor:
    """Images in which every value is different."""
    return torch.arange(count * height * width * channels, dtype=torch.int32).view(count, height, width, channels)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    count=st.integers(1, 4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from([1, 3]),
    square=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_erase_agrees_with_torchvision_image_by_image(
    count: int, size: tuple[int, int], channels: int, square: int, seed: int
) -> None:
    images = numbered_images(count, *size, channels)
    top, left = (torch.randint(1 - square, end, (count,), generator=seeded(seed)) for end in size)
    color = torch.arange(channels, dtype=images.dtype) - 9
    erased = erase(images, top, left, square, color)
    for i in range(count):
        rows, columns = (slice(max(0, int(start[i])), int(start[i]) + square) for start in (top, left))
        height, width, _ = images[i, rows, columns].shape
        expected = v2.functional.erase(
            images[i].permute(2, 0, 1), rows.start, columns.start, height, width, color[:, None, None]
        )
        assert torch.equal(erased[i], expected.permute(1, 2, 0))
    assert torch.equal(images, numbered_images(count, *size, channels)), "the argument is unchanged"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutout_fills_squares_around_any_pixel_with_the_mean_color(dtype: torch.dtype) -> None:
    data = torch.tensor([[10, 20, 30], [20, 20, 31]], dtype=torch.uint8)[:, None, None].expand(-1, 8, 8, -1)
    cutout = Cutout(3, data, seeded(0))
    images = torch.full((4000, 8, 8, 3), 200, dtype=dtype)
    out = cutout(images)
    assert out.dtype == dtype
    erased_mask = (out != images).all(3)
    assert torch.equal(out[erased_mask].unique(dim=0), torch.tensor([[15, 20, 30]], dtype=dtype))
    assert set(erased_mask.sum((1, 2)).tolist()) == {4, 6, 9}, "whole squares, and those cut off at one or two edges"
    # A pixel is erased by any of the centers around it: 9 of 64 inside, 4 in a corner.
    frequency = erased_mask.float().mean(0)
    assert frequency[2:6, 2:6].mean().item() == pytest.approx(9 / 64, abs=0.01)
    assert frequency[0, 0].item() == pytest.approx(4 / 64, abs=0.02)
    assert torch.equal(Cutout(3, data, seeded(0))(images), out)
    assert not torch.equal(Cutout(3, data, seeded(1))(images), out)


def test_cutout_erases_the_same_fraction_of_smaller_images() -> None:
    cutout = Cutout(8, torch.zeros(1, 32, 32, 3, dtype=torch.uint8), seeded(0))
    for size, side in {32: 8, 20: 5, 2: 1}.items():
        erased_mask = (cutout(torch.ones(500, size, size, 3, dtype=torch.uint8)) == 0).all(3).sum((1, 2))
        assert erased_mask.max() == side**2


def test_size_zero_leaves_images_unchanged_and_draws_no_random_numbers() -> None:
    images, generator = numbered_images(4, 8, 8, 3), seeded(0)
    before = generator.get_state()
    assert Cutout(0, images, generator)(images) is images
    assert torch.equal(generator.get_state(), before)
