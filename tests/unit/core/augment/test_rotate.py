"""Rotation: against torchvision image by image, and which angles are drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from vision.core.augment.rotate import RandomRotation, rotate


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(image: Tensor, degrees: float) -> Tensor:
    """The expected result for one image [H, W, C], by torchvision: pad by reflection, rotate, crop."""
    height, width, _ = image.shape
    padding = min(height, width) - 1
    planes = v2.functional.pad(image.permute(2, 0, 1).float(), [padding], padding_mode="reflect")
    planes = v2.functional.rotate(planes, degrees, interpolation=v2.InterpolationMode.BILINEAR)
    return v2.functional.center_crop(planes, [height, width]).permute(1, 2, 0)


SHAPES = st.tuples(st.integers(1, 4), st.integers(4, 13), st.integers(4, 13), st.sampled_from([1, 3]))


@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_rotate_agrees_with_torchvision_image_by_image(shape: tuple[int, int, int, int], seed: int) -> None:
    images = noise(*shape, seed=seed)
    degrees = 30 * (2 * torch.rand(len(images), generator=seeded(seed)) - 1)
    out = rotate(images, degrees)
    assert out.shape == images.shape
    for i in range(len(images)):
        assert torch.allclose(out[i], reference(images[i], float(degrees[i])), atol=0.01)
    moved = images.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(rotate(moved, degrees), rotate(moved.contiguous(), degrees)), "independent of the memory format"


def test_a_quarter_turn_moves_whole_pixels() -> None:
    images = noise(2, 7, 7, 3)
    expected = torch.stack((images[0].rot90(1), images[1].rot90(-1))).float()
    assert torch.allclose(rotate(images, torch.tensor([90.0, -90.0])), expected, atol=0.01)


def test_images_of_one_row_or_one_pixel() -> None:
    assert torch.allclose(rotate(noise(1, 1, 1, 3), torch.tensor([33.0])), noise(1, 1, 1, 3).float())
    assert rotate(noise(2, 1, 5, 3), torch.tensor([0.0, 33.0])).isfinite().all()


def test_angles_are_uniform() -> None:
    # The brightness increases along a row, so the direction of its gradient is the angle.
    ramp = torch.arange(9.0).expand(9, 9)[None, :, :, None].expand(4000, -1, -1, 1)
    out = RandomRotation(20.0, seeded(0))(ramp)
    degrees = torch.atan2(out[:, 5, 4, 0] - out[:, 3, 4, 0], out[:, 4, 5, 0] - out[:, 4, 3, 0]).rad2deg()
    assert degrees.abs().max().item() == pytest.approx(20, abs=0.1)
    assert degrees.mean().item() == pytest.approx(0, abs=1)
    assert degrees.std().item() == pytest.approx(40 / 12**0.5, abs=0.5)
    assert torch.equal(RandomRotation(20.0, seeded(0))(ramp), out)
    assert not torch.equal(RandomRotation(20.0, seeded(1))(ramp), out)


def test_zero_degrees_leave_images_unchanged_and_draw_no_random_numbers() -> None:
    images, generator = noise(4, 8, 8, 3), seeded(0)
    before = generator.get_state()
    assert RandomRotation(0, generator)(images) is images
    assert torch.equal(generator.get_state(), before)
