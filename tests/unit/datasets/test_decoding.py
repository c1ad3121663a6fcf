import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vision.datasets import decoding, image_file
from vision.pipeline.errors import UserError

RAMP = np.linspace(0, 255, 30 * 20 * 3).reshape(20, 30, 3).astype(np.uint8)


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    picture = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    picture.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        ("png", "RGB"), ("png", "L"), ("png", "P"), ("png", "1"), ("png", "LA"), ("png", "RGBA"), ("jpg", "CMYK"),
        ("jpg", "RGB"), ("jpg", "L"), ("webp", "RGBA"), ("gif", "P"), ("bmp", "RGB"), ("tif", "CMYK"), ("ppm", "RGB"),
        ("jp2", "RGB"), ("avif", "RGB"), ("tif", "LAB"),
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb(suffix: str, mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(RAMP).convert(mode)
    decoded = image_file.decode(saved(tmp_path / f"a.{suffix}", picture))
    assert (decoded.mode, decoded.size) == ("RGB", (30, 20))
    away = np.asarray(decoded.convert("L"), int) - np.asarray(picture.convert("RGB").convert("L"))
    assert np.abs(away).mean() < 8


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bits_are_brought_to_eight_and_not_cut_off(suffix: str, tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    decoded = np.asarray(image_file.decode(saved(tmp_path / f"a.{suffix}", levels)))
    np.testing.assert_array_equal(decoded, np.repeat((levels >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode: str, tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:, 3] = 255
    if mode == "P":
        palette = Image.fromarray(pixels[..., 3] // 255).convert("P")
        palette.putpalette([9, 9, 9, 0, 0, 0])
        path = saved(tmp_path / "a.png", palette, transparency=0)
    else:
        path = saved(tmp_path / "a.png", Image.fromarray(pixels).convert(mode))
    decoded = np.asarray(image_file.decode(path))
    assert (decoded[:, :4] == 255).all()
    assert (decoded[:, 4:] == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    upright = Image.fromarray(RAMP)
    # How a camera stores the image for each orientation.
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = upright if stored is None else upright.transpose(stored)
    decoded = image_file.decode(saved(tmp_path / "a.png", turned, exif=exif))
    np.testing.assert_array_equal(np.asarray(decoded), RAMP)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif", "ppm", "jp2", "avif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6])
def test_a_truncated_image_is_refused(share: float, suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path / f"a.{suffix}", noise)
    image_file.decode(path)
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        image_file.decode(path)


def huge_png(path: Path, width: int, height: int) -> Path:
    """A file of some bytes whose header claims this many pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    parts = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize(
    ("width", "height", "says"),
    [
        (70_000, 10, "70,000 x 10 pixels, more than 65,535 on a side"),
        (10_000, 10_000, "10,000 x 10,000 pixels, more than 89,478,485 in all"),  # Pillow alone only warns
        (60_000, 60_000, "exceeds limit"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(width: int, height: int, says: str, tmp_path: Path) -> None:
    path = huge_png(tmp_path / "a.png", width, height)
    with pytest.raises(UserError, match=says):
        decoding.load_images([path], np.arange(1), 8)


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", b"GIF but not quite", b""])
def test_formats_beyond_the_named_ones_are_not_opened(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match="not an image"):
        image_file.decode(tmp_path / "a.png")


def test_numbers_with_no_natural_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="floating-point"):
        image_file.decode(saved(tmp_path / "f.tif", np.ones((4, 4), np.float32)))
    with pytest.raises(ValueError, match="more than 16 bits"):
        image_file.decode(saved(tmp_path / "i.tif", np.full((4, 4), 2**20, np.int32)))


@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(8, 40), seed=st.integers(0, 99))
def test_files_and_arrays_become_the_same_squares(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, size: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8)
    folder = tmp_path_factory.mktemp("images")
    files = [saved(folder / f"{number}.png", image) for number, image in enumerate(pixels)]
    rows = np.array([1, 0, 1])
    squares = decoding.load_images(pixels, rows, size)
    assert squares.shape == (3, size, size, 3)
    np.testing.assert_array_equal(squares, decoding.load_images(files, rows, size))
    np.testing.assert_array_equal(squares[0], squares[2])


def test_the_center_is_cropped_and_resized_with_antialiasing(tmp_path: Path) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128:2] = 255  # a grid too fine for the small image: gray, not stripes
    wide[:, :64, 0] = wide[:, 128:, 2] = 255
    (square,) = decoding.load_images(wide[None], np.arange(1), 16)
    inner = square[:, 2:-2].astype(int)
    assert np.abs(inner - 127).max() < 20
    (same,) = decoding.load_images(wide[None, :, 64:128], np.arange(1), 64)
    np.testing.assert_array_equal(same, wide[:, 64:128])


def test_a_large_jpeg_comes_out_as_if_decoded_whole(tmp_path: Path) -> None:
    y, x = np.mgrid[0:600, 0:800]
    photo = np.stack([127 + 120 * np.sin(x / 40), 127 + 120 * np.sin(y / 30), (x + y) / 6], axis=2).astype(np.uint8)
    path = saved(tmp_path / "a.jpg", photo, quality=95)
    (from_file,) = decoding.load_images([path], np.arange(1), 64)
    (from_pixels,) = decoding.load_images(np.asarray(image_file.decode(path))[None], np.arange(1), 64)
    assert np.abs(from_file.astype(int) - from_pixels).max() <= 8


def test_without_a_size_all_files_have_to_have_one(tmp_path: Path) -> None:
    files = [saved(tmp_path / f"{number}.png", RAMP) for number in range(3)]
    np.testing.assert_array_equal(decoding.load_images(files, np.arange(3), None), [RAMP] * 3)
    assert decoding.load_images(files, np.arange(0), None).shape == (0, 20, 30, 3)
    saved(tmp_path / "2.png", RAMP[:, :10])
    with pytest.raises(UserError, match=r"image_size: null, but there are images of 30 x 20 and 10 x 20 pixels;"):
        decoding.load_images(files, np.arange(3), None)


def test_a_damaged_file_of_the_raw_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png: not an image.*; `dvc repro -f download` restores it"):
        decoding.load_images([tmp_path / "a.png"], np.arange(1), 8)


def test_threads_do_all_once_and_stop_at_the_first_error() -> None:
    done: list[int] = []
    decoding.run_in_threads(done.append, 1000, "count")
    assert sorted(done) == list(range(1000))

    begun = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise KeyboardInterrupt
        time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt):
        decoding.run_in_threads(work, 10**5, "stop")
    assert len(begun) < 10**4
