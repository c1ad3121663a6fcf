"""The augmentations: against a plain per-image reference, and as properties of any batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from vision.core.augment.crop_flip import RandomCropFlip, reflected, shift_and_flip
from vision.core.augment.cutout import Cutout, cut_out
from vision.core.augment.generators import host_generator
from vision.core.augment.resize import resize_images


def numbered_images(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Images in which every value is different, so that each output pixel betrays where it came from."""
    return torch.arange(count * height * width * channels, dtype=torch.int32).view(count, height, width, channels)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(image: Tensor, down: int, right: int, mirrored: bool, reach: int) -> Tensor:
    """The same for one image [H, W, C] by torchvision: pad by reflection, crop, flip."""
    height, width, _ = image.shape
    planes = v2.functional.pad(image.permute(2, 0, 1), [reach], padding_mode="reflect")
    planes = v2.functional.crop(planes, reach - down, reach - right, height, width)
    return (v2.functional.horizontal_flip(planes) if mirrored else planes).permute(1, 2, 0)


@given(
    count=st.integers(1, 5),
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
)
def test_shift_and_flip_agrees_with_torchvision_image_by_image(
    count: int, height: int, width: int, channels: int, seed: int
) -> None:
    images = numbered_images(count, height, width, channels).float()
    generator = torch.Generator().manual_seed(seed)
    down, right = torch.randint(-3, 4, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    moved = shift_and_flip(images, down, right, mirrored, reach=3)
    assert moved.is_contiguous()
    for i in range(count):
        expected = reference(images[i], int(down[i]), int(right[i]), bool(mirrored[i]), reach=3)
        assert torch.equal(moved[i], expected)
    unmirrored = shift_and_flip(images, down, right, None, reach=3)
    assert torch.equal(unmirrored, shift_and_flip(images, down, right, torch.zeros_like(mirrored), reach=3))
    other_order = images.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(shift_and_flip(other_order, down, right, mirrored, reach=3), moved)


@given(
    count=st.integers(1, 6),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    flip=st.sampled_from(["none", "random", "alternate"]),
    padding=st.integers(0, 20),
    seed=st.integers(0, 1000),
)
def test_augmentation_keeps_shape_and_dtype_and_invents_no_pixel(
    count: int, size: tuple[int, int], flip: str, padding: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *size, 3), generator=generator, dtype=torch.uint8)
    augment = RandomCropFlip(flip, padding, count, generator)  # type: ignore[arg-type]
    out = augment(images, torch.arange(count))
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    for before, after in zip(images, out, strict=True):
        colours = {tuple(pixel.tolist()) for pixel in before.reshape(-1, 3)}
        assert {tuple(pixel.tolist()) for pixel in after.reshape(-1, 3)} <= colours


def test_without_flip_and_padding_images_stay_as_they_are() -> None:
    images = numbered_images(4, 8, 8)
    out = RandomCropFlip("none", 0, 4, seeded(0))(images, torch.arange(4))
    assert torch.equal(out, images)


def test_alternate_flip_shows_the_other_side_of_each_image_every_time() -> None:
    images = numbered_images(1000, 4, 4)
    augment = RandomCropFlip("alternate", 0, 1000, seeded(0))
    first, second, third = (augment(images, torch.arange(1000)) for _ in range(3))
    assert torch.equal(first, third)
    assert torch.equal(first, second.flip(2))
    mirrored = (first != images).flatten(1).any(1)
    assert 400 < int(mirrored.sum()) < 600
    other = RandomCropFlip("alternate", 0, 1000, seeded(1))(images, torch.arange(1000))
    assert not torch.equal(first, other), "the seed decides which side an image shows first"


def test_alternate_flip_shows_both_sides_also_of_images_that_are_left_out_at_times() -> None:
    images = numbered_images(1000, 4, 4)
    augment = RandomCropFlip("alternate", 0, 1000, seeded(0))
    everything, some = torch.arange(1000), torch.arange(0, 1000, 3)
    first = augment(images, everything)
    others = torch.tensor([number for number in range(1000) if number % 3])
    augment(images[others], others)
    assert torch.equal(augment(images[some], some), first[some].flip(2))


def test_random_flip_mirrors_about_half_of_the_images() -> None:
    images = numbered_images(1000, 2, 4)
    out = RandomCropFlip("random", 0, 1000, seeded(0))(images, torch.arange(1000))
    assert 400 < int((out != images).flatten(1).any(1).sum()) < 600


def test_shifts_reach_the_whole_padding_and_no_further() -> None:
    seen = set()
    images = numbered_images(2000, 9, 9, 1)
    out = RandomCropFlip("none", 2, 2000, seeded(0))(images, torch.arange(2000))
    for before, after in zip(images, out, strict=True):
        middle = (before == after[4, 4]).nonzero()[0][:2] - 4
        seen.add(tuple(middle.tolist()))
    assert seen == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_reflected_indices_mirror_at_the_edge_pixels(size: int) -> None:
    inside = list(range(size))
    mirrored = inside[:0:-1] + inside + inside[-2::-1] if size > 1 else inside
    index = torch.arange(1 - size, 2 * size - 1)
    assert reflected(index, size).tolist() == mirrored


@pytest.mark.parametrize("scale", [0.75, 0.5, 0.3])
def test_shrunk_agrees_with_torchvision_image_by_image(scale: float) -> None:
    images = torch.randint(0, 256, (3, 32, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = resize_images(images, scale)
    size = [round(32 * scale), round(20 * scale)]
    assert out.shape == (3, *size, 3)
    assert out.dtype == torch.uint8
    for before, after in zip(images, out, strict=True):
        expected = v2.functional.resize(before.permute(2, 0, 1).float(), size, antialias=True).permute(1, 2, 0)
        assert (after.float() - expected).abs().max() <= 1


def test_shrunk_to_full_size_is_the_same() -> None:
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(resize_images(images, 1.0), images)


@given(
    count=st.integers(1, 4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from([1, 3]),
    side=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_cut_out_agrees_with_torchvision_image_by_image(
    count: int, size: tuple[int, int], channels: int, side: int, seed: int
) -> None:
    images = numbered_images(count, *size, channels)
    top, left = (torch.randint(1 - side, end, (count,), generator=seeded(seed)) for end in size)
    colour = torch.arange(channels, dtype=images.dtype) - 9
    covered = cut_out(images, top, left, side, colour)
    for i in range(count):
        rows, columns = (slice(max(0, int(start[i])), int(start[i]) + side) for start in (top, left))
        height, width, _ = images[i, rows, columns].shape
        expected = v2.functional.erase(
            images[i].permute(2, 0, 1), rows.start, columns.start, height, width, colour[:, None, None]
        )
        assert torch.equal(covered[i], expected.permute(1, 2, 0))
    assert torch.equal(images, numbered_images(count, *size, channels)), "what was given stays as it was"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutout_hides_squares_of_the_mean_colour_centred_on_any_pixel(dtype: torch.dtype) -> None:
    data = torch.tensor([[10, 20, 30], [20, 20, 31]], dtype=torch.uint8)[:, None, None].expand(-1, 8, 8, -1)
    cutout = Cutout(3, data, seeded(0))
    images = torch.full((4000, 8, 8, 3), 200, dtype=dtype)
    out = cutout(images)
    assert out.dtype == dtype
    hidden = (out != images).all(3)
    assert torch.equal(out[hidden].unique(dim=0), torch.tensor([[15, 20, 30]], dtype=dtype))
    assert set(hidden.sum((1, 2)).tolist()) == {4, 6, 9}, "whole squares, and those that an edge or two cut off"
    # A pixel is hidden where one of the centres around it is drawn: 9 of 64 inside, 4 in a corner.
    share = hidden.float().mean(0)
    assert share[2:6, 2:6].mean().item() == pytest.approx(9 / 64, abs=0.01)
    assert share[0, 0].item() == pytest.approx(4 / 64, abs=0.02)
    assert torch.equal(Cutout(3, data, seeded(0))(images), out)
    assert not torch.equal(Cutout(3, data, seeded(1))(images), out)


def test_cutout_hides_the_same_share_of_smaller_images() -> None:
    cutout = Cutout(8, torch.zeros(1, 32, 32, 3, dtype=torch.uint8), seeded(0))
    for size, side in {32: 8, 20: 5, 2: 1}.items():
        hidden = (cutout(torch.ones(500, size, size, 3, dtype=torch.uint8)) == 0).all(3).sum((1, 2))
        assert hidden.max() == side**2


def test_without_cutout_images_are_not_touched_and_nothing_is_drawn() -> None:
    images, generator = numbered_images(4, 8, 8), seeded(0)
    before = generator.get_state()
    assert Cutout(0, images, generator)(images) is images
    assert torch.equal(generator.get_state(), before)


def test_the_hosts_generator_follows_from_the_devices() -> None:
    first, again, other = (torch.rand(3, generator=host_generator(seeded(seed))) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
