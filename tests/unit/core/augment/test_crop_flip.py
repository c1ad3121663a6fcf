"""Random crop and flip: against torchvision image by image, and which shifts and flips are drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from vision.core.augment.crop_flip import RandomCropFlip, reflect_indices, shift_and_flip


def numbered_images(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Images in which every value is different, so that each output pixel shows where it came from."""
    return torch.arange(count * height * width * channels, dtype=torch.int32).view(count, height, width, channels)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(image: Tensor, shift_y: int, shift_x: int, flip: bool, max_shift: int) -> Tensor:
    """The expected result for one image [H, W, C], by torchvision: pad by reflection, crop, flip."""
    height, width, _ = image.shape
    planes = v2.functional.pad(image.permute(2, 0, 1), [max_shift], padding_mode="reflect")
    planes = v2.functional.crop(planes, max_shift - shift_y, max_shift - shift_x, height, width)
    return (v2.functional.horizontal_flip(planes) if flip else planes).permute(1, 2, 0)


SHAPES = st.tuples(st.integers(1, 5), st.integers(4, 9), st.integers(4, 9), st.sampled_from([1, 3]))


@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_shift_and_flip_agrees_with_torchvision_image_by_image(shape: tuple[int, int, int, int], seed: int) -> None:
    images = numbered_images(*shape).float()
    count, generator = len(images), seeded(seed)
    shift_y, shift_x = torch.randint(-3, 4, (2, count), generator=generator)
    flip = torch.rand(count, generator=generator) < 0.5
    moved = shift_and_flip(images, shift_y, shift_x, flip, max_shift=3)
    assert moved.is_contiguous()
    for i in range(count):
        expected = reference(images[i], int(shift_y[i]), int(shift_x[i]), bool(flip[i]), max_shift=3)
        assert torch.equal(moved[i], expected)
    unflipped = shift_and_flip(images, shift_y, shift_x, None, max_shift=3)
    assert torch.equal(unflipped, shift_and_flip(images, shift_y, shift_x, torch.zeros_like(flip), max_shift=3))
    other_order = images.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(shift_and_flip(other_order, shift_y, shift_x, flip, max_shift=3), moved)


@given(
    count=st.integers(1, 6),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    flip=st.sampled_from(["none", "random", "alternate"]),
    padding=st.integers(0, 20),
    seed=st.integers(0, 1000),
)
def test_result_has_the_same_shape_and_dtype_and_only_pixels_of_the_image(
    count: int, size: tuple[int, int], flip: str, padding: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *size, 3), generator=generator, dtype=torch.uint8)
    augment = RandomCropFlip(flip, padding, count, generator)  # type: ignore[arg-type]
    out = augment(images, torch.arange(count))
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    for before, after in zip(images, out, strict=True):
        colors = {tuple(pixel.tolist()) for pixel in before.reshape(-1, 3)}
        assert {tuple(pixel.tolist()) for pixel in after.reshape(-1, 3)} <= colors


def test_no_flip_and_no_padding_leave_images_unchanged() -> None:
    images = numbered_images(4, 8, 8)
    out = RandomCropFlip("none", 0, 4, seeded(0))(images, torch.arange(4))
    assert torch.equal(out, images)


def test_alternate_flip_changes_the_side_of_each_image_every_time() -> None:
    images = numbered_images(1000, 4, 4)
    augment = RandomCropFlip("alternate", 0, 1000, seeded(0))
    first, second, third = (augment(images, torch.arange(1000)) for _ in range(3))
    assert torch.equal(first, third)
    assert torch.equal(first, second.flip(2))
    flipped = (first != images).flatten(1).any(1)
    assert 400 < int(flipped.sum()) < 600
    other = RandomCropFlip("alternate", 0, 1000, seeded(1))(images, torch.arange(1000))
    assert not torch.equal(first, other), "the seed decides which side an image shows first"


def test_alternate_flip_changes_the_side_of_images_that_were_left_out_in_between() -> None:
    images = numbered_images(1000, 4, 4)
    augment = RandomCropFlip("alternate", 0, 1000, seeded(0))
    all_indices, some = torch.arange(1000), torch.arange(0, 1000, 3)
    first = augment(images, all_indices)
    others = torch.tensor([i for i in range(1000) if i % 3])
    augment(images[others], others)
    assert torch.equal(augment(images[some], some), first[some].flip(2))


def test_random_flip_flips_about_half_of_the_images() -> None:
    images = numbered_images(1000, 2, 4)
    out = RandomCropFlip("random", 0, 1000, seeded(0))(images, torch.arange(1000))
    assert 400 < int((out != images).flatten(1).any(1).sum()) < 600


def test_shifts_are_all_those_within_the_padding() -> None:
    seen = set()
    images = numbered_images(2000, 9, 9, 1)
    out = RandomCropFlip("none", 2, 2000, seeded(0))(images, torch.arange(2000))
    for before, after in zip(images, out, strict=True):
        middle = (before == after[4, 4]).nonzero()[0][:2] - 4
        seen.add(tuple(middle.tolist()))
    assert seen == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_reflect_indices_reflects_at_the_edge_pixels(size: int) -> None:
    inside = list(range(size))
    expected = inside[:0:-1] + inside + inside[-2::-1] if size > 1 else inside
    index = torch.arange(1 - size, 2 * size - 1)
    assert reflect_indices(index, size).tolist() == expected
