"""Gaussian blur: against SciPy image by image, and which images get it."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from vision.core.augment.blur import GaussianBlur, blur


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int, height: int = 12, width: int = 17) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=seeded())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_blur_agrees_with_scipy_image_by_image(dtype: torch.dtype) -> None:
    images = random_images(4).to(dtype)
    sigmas = torch.tensor([0.0, 0.5, 1.0, 1.5])
    out = blur(images, sigmas)
    assert out.dtype == torch.float32
    assert torch.equal(out[0], images[0].float())
    inside = np.ones((12, 17, 1))
    for image, sigma, blurred in zip(images[1:].numpy(), sigmas[1:].tolist(), out[1:].numpy(), strict=True):
        # Zeros around the image, and a division by the weights that are inside: only pixels of the image are averaged.
        total, weight = (
            scipy.ndimage.gaussian_filter(array.astype(float), (sigma, sigma, 0), mode="constant", truncate=9)
            for array in (image, inside)
        )
        assert np.abs(blurred - total / weight).max() < 1e-2


def test_half_of_a_batch_is_blurred_each_image_by_its_own_strength() -> None:
    images = torch.zeros(401, 33, 33, 3, dtype=torch.uint8)
    images[:, 16, 16] = 255  # a blurred point has the height 1 / (2 * pi * sigma^2)
    out = GaussianBlur(2.0, 33, seeded())(images)
    assert torch.equal(out[201:], images[201:].float())
    heights = out[:201, 16, 16, 0] / 255
    assert heights.min().item() == pytest.approx(1 / (8 * torch.pi), rel=0.1)
    assert heights.median().item() == pytest.approx(1 / (2 * torch.pi), rel=0.25)
    assert torch.equal(GaussianBlur(2.0, 33, seeded())(images), out)


def test_smaller_images_are_blurred_less() -> None:
    large = random_images(20, 32, 32)
    small = large[:, ::2, ::2].contiguous()
    generator = seeded()
    expected = blur(small[:10], torch.rand(10, generator=generator))
    assert torch.allclose(GaussianBlur(2.0, 32, seeded())(small)[:10], expected, atol=1e-3)


def test_zero_leaves_images_unchanged_and_draws_no_random_numbers() -> None:
    images, generator = random_images(4), seeded()
    before = generator.get_state()
    assert GaussianBlur(0.0, 12, generator)(images) is images
    assert torch.equal(generator.get_state(), before)
