"""Downscaling: against torchvision image by image."""

import pytest
import torch
from torchvision.transforms import v2

from vision.core.augment.resize import resize_images


@pytest.mark.parametrize("scale", [0.75, 0.5, 0.3])
def test_resize_images_agrees_with_torchvision_image_by_image(scale: float) -> None:
    images = torch.randint(0, 256, (3, 32, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = resize_images(images, scale)
    size = [round(32 * scale), round(20 * scale)]
    assert out.shape == (3, *size, 3)
    assert out.dtype == torch.uint8
    for before, after in zip(images, out, strict=True):
        expected = v2.functional.resize(before.permute(2, 0, 1).float(), size, antialias=True).permute(1, 2, 0)
        assert (after.float() - expected).abs().max() <= 1


def test_scale_one_leaves_images_unchanged() -> None:
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(resize_images(images, 1.0), images)
