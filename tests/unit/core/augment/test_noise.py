"""Gaussian noise: its strength, and which images get it."""

import pytest
import torch

from vision.core.augment.noise import GaussianNoise, add_noise


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_noise_has_the_standard_deviation_of_each_image(dtype: torch.dtype) -> None:
    images = torch.full((3, 64, 64, 3), 120, dtype=dtype)
    out = add_noise(images, torch.tensor([0.0, 5.0, 20.0]), seeded())
    assert out.dtype == torch.float32
    assert torch.equal(out[0], images[0].float())
    assert out.std((1, 2, 3)).tolist() == pytest.approx([0, 5, 20], rel=0.02)
    assert out.mean((1, 2, 3)).tolist() == pytest.approx([120] * 3, abs=0.6)
    assert (images == 120).all(), "the argument is unchanged"


def test_values_stay_in_their_range() -> None:
    images = torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 9, 9, 3)
    out = add_noise(images, torch.tensor([50.0, 50.0]), seeded())
    assert (out.min().item(), out.max().item()) == (0, 255)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_second_image_gets_noise_of_its_own_strength(dtype: torch.dtype) -> None:
    images = torch.full((401, 32, 32, 3), 120, dtype=dtype)
    out = GaussianNoise(0.1, seeded())(images)
    assert torch.equal(out[1::2], images[1::2].float())
    assert (images == 120).all(), "the argument is unchanged"
    stds = (out[::2] - 120).std((1, 2, 3)) / 255
    assert stds.max().item() == pytest.approx(0.1, rel=0.1)
    assert stds.mean().item() == pytest.approx(0.05, rel=0.1)
    assert torch.equal(GaussianNoise(0.1, seeded())(images), out)


def test_zero_leaves_images_unchanged_and_draws_no_random_numbers() -> None:
    images, generator = torch.zeros(4, 8, 8, 3, dtype=torch.uint8), seeded()
    before = generator.get_state()
    assert GaussianNoise(0.0, generator)(images) is images
    assert torch.equal(generator.get_state(), before)
