"""Each corruption: shapes, repeatability and strength, and its formula beside other libraries."""

import colorsys
import io

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from torch import Tensor

from vision.evaluation.corruptions import blur, digital, filters, noise, table, weather
from vision.evaluation.corruptions.plasma import plasma
from vision.evaluation.corruptions.table import SEVERITIES, corrupt

CORRUPTIONS = table.CORRUPTIONS | table.EXTRA_CORRUPTIONS
RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"}
RANDOM |= {"elastic_transform", "speckle_noise", "spatter"}


def pictures(count: int = 8, height: int = 32, width: int = 32) -> Tensor:
    """Smooth colored images, as photographs are, with values from about 20 to 230."""
    grid = torch.randn(count, 3, 4, 4, generator=seeded())
    smooth = torch.nn.functional.interpolate(grid, (height, width), mode="bicubic")
    texture = 8 * torch.randn(count, 3, height, width, generator=seeded())
    return (125 + 45 * smooth + texture).clamp(20, 230).byte().permute(0, 2, 3, 1).contiguous()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corrupted(images: Tensor, name: str, severity: int) -> Tensor:
    return torch.cat(list(corrupt(images, name, severity)))


def distance(images: Tensor, others: Tensor) -> float:
    return (images.float() - others.float()).abs().mean().item()


def test_a_corruption_has_the_name_of_its_function() -> None:
    assert (len(table.CORRUPTIONS), len(table.EXTRA_CORRUPTIONS)) == (15, 4)
    assert [function.__name__ for function in CORRUPTIONS.values()] == list(CORRUPTIONS)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_keep_their_shape_and_are_the_same_each_time(name: str) -> None:
    for size in ((32, 32), (48, 64), (9, 8), (64, 20)):
        images = pictures(3, *size)
        original = images.clone()
        for severity in SEVERITIES:
            out = corrupted(images, name, severity)
            assert (out.shape, out.dtype) == (images.shape, torch.uint8)
            assert torch.equal(out, corrupted(images, name, severity))
        assert torch.equal(images, original), "the argument is unchanged"


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_differ_in_random_numbers_and_in_nothing_else(name: str) -> None:
    images = pictures(1).expand(2, -1, -1, -1).contiguous()
    first, second = CORRUPTIONS[name](images, 4, seeded())
    assert torch.equal(first, second) == (name not in RANDOM)
    other, _ = CORRUPTIONS[name](images, 4, seeded(1))
    assert torch.equal(first, other) == (name not in RANDOM)


def test_images_are_corrupted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.evaluation.corruptions.table.CHUNK", 3)
    parts = list(corrupt(pictures(8), "gaussian_noise", 1))
    assert [len(part) for part in parts] == [3, 3, 2]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_more(name: str) -> None:
    images = pictures(40)
    distances = [distance(images, corrupted(images, name, severity)) for severity in SEVERITIES]
    assert min(distances) > 0
    # By the constants of CIFAR-10-C, these are not ordered. Severity 1 of the elastic transform moves pixels furthest.
    if name not in {"glass_blur", "motion_blur", "frost", "elastic_transform", "spatter", "saturate"}:
        assert distances == sorted(distances)
    if name not in {"elastic_transform", "spatter", "saturate"}:
        assert distances[4] > 1.1 * distances[0]


@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur", "motion_blur", "zoom_blur", "pixelate"])
def test_lengths_scale_with_the_image(name: str) -> None:
    """An image of four times the size is changed about as much."""
    small = pictures(20)
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    change = [distance(images, corrupted(images, name, 5)) for images in (small, large)]
    assert change[1] == pytest.approx(change[0], rel=0.35)


@pytest.mark.parametrize("name", [*(name for name in CORRUPTIONS if "blur" in name), "elastic_transform", "contrast"])
def test_a_plain_image_stays_plain(name: str) -> None:
    plain = torch.full((2, 32, 32, 3), 77, dtype=torch.uint8)
    assert distance(plain, CORRUPTIONS[name](plain, 5, seeded())) < 1.01


def test_noise_has_the_spread_of_the_paper() -> None:
    gray = torch.full((200, 32, 32, 3), 128, dtype=torch.uint8)
    value = 128 / 255
    for severity, std, photons, probability, speckle in zip(
        SEVERITIES,
        (0.04, 0.06, 0.08, 0.09, 0.10),
        (500, 250, 100, 75, 50),
        (0.01, 0.02, 0.03, 0.05, 0.07),
        (0.06, 0.1, 0.12, 0.16, 0.2),
        strict=True,
    ):
        for function, expected in (
            (noise.gaussian_noise, std),
            (noise.shot_noise, (value / photons) ** 0.5),
            (noise.speckle_noise, speckle * value),
        ):
            error = (function(gray, severity, seeded()).double() - 128) / 255
            assert error.std().item() == pytest.approx(expected, rel=0.02)
            assert abs(error.mean().item()) < 0.001
        salted = noise.impulse_noise(gray, severity, seeded())
        for extreme in (0, 255):
            assert (salted == extreme).double().mean().item() == pytest.approx(probability / 2, rel=0.05)
        assert set(salted.unique().tolist()) == {0, 128, 255}


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_saturation_agree_with_colorsys(severity: int) -> None:
    images = pictures(1, 12, 12)
    images[0, 0, :3] = torch.tensor([[0, 0, 0], [90, 90, 90], [255, 255, 255]])
    more = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    factor, plus = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    brighter = weather.brightness(images, severity, seeded())
    saturated = digital.saturate(images, severity, seeded())
    for row, column in np.ndindex(12, 12):
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[0, row, column].double() / 255).tolist())
        for out, expected in (
            (brighter, colorsys.hsv_to_rgb(hue, saturation, min(1, value + more))),
            (saturated, colorsys.hsv_to_rgb(hue, min(1, saturation * factor + plus), value)),
        ):
            assert np.abs(out[0, row, column].numpy() - 255 * np.array(expected)).max() < 0.51


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_agrees_with_numpy(severity: int) -> None:
    images = pictures(5)
    mean = images.numpy().mean((1, 2), keepdims=True)
    expected = mean + (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1] * (images.numpy() - mean)
    assert np.abs(digital.contrast(images, severity, seeded()).numpy() - expected).max() < 0.51


def test_gaussian_blur_agrees_with_scipy() -> None:
    planes = torch.rand(2, 3, 20, 9, generator=seeded())
    for sigma, truncate in ((0.4, 4.0), (1.0, 4.0), (6.4, 3.0)):
        expected = scipy.ndimage.gaussian_filter(
            planes.numpy(), (0, 0, sigma, sigma), mode="reflect", truncate=truncate
        )
        assert np.allclose(filters.gaussian_blur(planes, sigma, truncate), expected, atol=1e-5)
    assert filters.gaussian_blur(planes, 0.05) is planes


def test_defocus_blur_is_the_mean_of_a_disk() -> None:
    """At severity 5 the disk has a radius of 1.5 pixels, which are 3x3, and its edge is hardly soft."""
    images = pictures(2)
    mean = scipy.ndimage.uniform_filter(images.numpy().astype(float), (0, 3, 3, 0), mode="nearest")
    assert np.abs(blur.defocus_blur(images, 5, seeded()).numpy() - mean).max() < 1.01


def test_motion_blur_averages_pixels_on_a_line() -> None:
    images = torch.rand(4, 11, 13, 2, generator=seeded())
    angles = torch.tensor([0.0, 90.0, -30.0, 135.0])
    out = filters.motion_blur(images, angles, radius=2, sigma=1.7)
    weights = np.exp(-0.5 * (np.arange(5) / 1.7) ** 2)
    for image, angle, blurred in zip(images.numpy(), np.deg2rad(angles.numpy()), out.numpy(), strict=True):
        expected = np.zeros_like(image)
        for step, weight in enumerate(weights / weights.sum()):
            down, right = round(step * np.sin(angle)), round(step * np.cos(angle))
            rows, columns = (np.arange(11) + down).clip(0, 10), (np.arange(13) + right).clip(0, 12)
            expected += weight * image[rows][:, columns]
        assert np.allclose(blurred, expected, atol=1e-5)


def test_glass_blur_copies_one_of_four_neighbors() -> None:
    images = torch.randint(0, 256, (30, 32, 32, 3), dtype=torch.uint8, generator=seeded())
    out = blur.glass_blur(images, 1, seeded())  # its filter is narrower than a pixel
    inner = out[:, 1:, 1:]
    shares = [
        (inner == images[:, 1 - up : 32 - up, 1 - left : 32 - left]).all(3).float().mean().item()
        for up in (0, 1)
        for left in (0, 1)
    ]
    assert shares == pytest.approx([0.25] * 4, abs=0.02)
    assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_zoom_blur_changes_the_center_least() -> None:
    changes = (blur.zoom_blur(pictures(50), 5, seeded()).float() - pictures(50).float()).abs().mean((0, 3))
    assert changes[12:20, 12:20].mean() < 0.6 * changes.mean()


def test_warp_moves_pixels() -> None:
    planes = torch.rand(2, 3, 6, 9, generator=seeded())
    grid = filters.pixel_grid(6, 9).expand(2, -1, -1, -1)
    assert torch.allclose(filters.warp(planes, grid), planes, atol=1e-5)
    moved = filters.warp(planes, grid + torch.tensor([2.0, 1.0]))
    assert torch.allclose(moved[:, :, :5, :7], planes[:, :, 1:, 2:], atol=1e-5)


def test_plasma_is_a_cloud_for_each_image() -> None:
    rough, smooth = (plasma(50, 32, 32, decay, seeded()) for decay in (1.75, 3.0))
    for clouds in (rough, smooth):
        assert torch.allclose(clouds.amin((1, 2, 3)), torch.zeros(50))
        assert torch.allclose(clouds.amax((1, 2, 3)), torch.ones(50))
        assert not torch.equal(clouds[0], clouds[1])
    assert smooth.diff(dim=3).abs().mean() < 0.8 * rough.diff(dim=3).abs().mean()
    assert plasma(2, 48, 70, 2, seeded()).shape == (2, 1, 48, 70)


def test_fog_keeps_the_brightest_value() -> None:
    images = pictures(9)
    for severity in SEVERITIES:
        assert (weather.fog(images, severity, seeded()).amax((1, 2, 3)) <= images.amax((1, 2, 3))).all()


def test_snow_is_white_and_mud_is_brown() -> None:
    black = torch.zeros(20, 32, 32, 3, dtype=torch.uint8)
    flakes = weather.snow(black, 5, seeded())
    assert torch.equal(flakes[..., 0], flakes[..., 2])
    assert flakes.float().mean() > 20
    mud = weather.spatter(torch.full_like(black, 255), 4, seeded())
    spots = mud[(mud != 255).any(3)].float().mean(0)
    assert spots[0] > spots[1] > spots[2]


def test_jpeg_and_pixels_are_pillows() -> None:
    images = pictures(2, 40, 30)  # 0.65 of 40 / 30 * 32 and of 32 pixels are 27 and 20
    for number, image in enumerate(images.numpy()):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=40)
        assert np.array_equal(digital.jpeg_compression(images, 5, seeded())[number], np.asarray(Image.open(file)))
        small = Image.fromarray(image).resize((20, 27), Image.Resampling.BOX)
        large = small.resize((30, 40), Image.Resampling.BOX)
        assert np.array_equal(digital.pixelate(images, 5, seeded())[number], np.asarray(large))
