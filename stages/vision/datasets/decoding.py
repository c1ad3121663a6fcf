"""Pictures of every kind as RGB of 8 bits and one size: decoded whole, upright, the centre square, antialiased."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vision.pipeline import progress
from vision.pipeline.errors import UserError

SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
            ".tiff", ".webp"}  # fmt: skip
"""Files with these endings, in small or capital letters, count as images."""
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_LONGEST = 65_535
_CHUNK = 16  # images that a thread takes at once
_BLOCK = 10_000  # images that are copied at once


def decode(path: Path, least: int | None = None) -> Image.Image:
    """The picture in a file (the first where there are several), turned as its EXIF orientation says, in mode RGB.

    What is transparent becomes white; 16 bits a channel become 8.

    Args:
        path: a file in one of the formats that are read, whatever its suffix.
        least: where given, a JPEG may be decoded at a fraction of its size, with no side below so many pixels: it is
            much faster.

    Raises:
        ValueError: it is no such file, not whole, too large, or of numbers that have no natural place in 0 to 255.
    """
    try:
        # Named formats alone: some of Pillow's others run programs, on files that may come from anywhere.
        with Image.open(path, formats=_FORMATS) as image:
            if max(image.size) > _LONGEST:
                raise ValueError(f"{image.width:,} x {image.height:,} pixels, more than {_LONGEST:,} a side")
            if least is not None:
                image.draft(None, (least, least))
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ValueError("not an image, or cut off at its beginning") from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"{error}" or type(error).__name__) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow itself would cut off what is above 255
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() >= 2**16:
            raise ValueError("pixels of more than 16 bits; save it with 8 or 16")
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        return ground.convert("RGB")
    return image.convert("RGB")


def resized(
    images: np.ndarray | Sequence[Path], rows: np.ndarray, size: int | None, description: str = "resize"
) -> np.ndarray:
    """Some of the images as one array: scaled until the shorter side is `size`, cut to the centre square.

    Args:
        images: uint8 [N, H, W, 3], or N image files.
        rows: integer [n], which of them and in which order.
        size: pixels a side; None leaves the images as they are.
        description: what the progress bar says.

    Returns:
        uint8 [n, size, size, 3], or [n, H, W, 3] where size is None.

    Raises:
        UserError: a file cannot be decoded, or size is None and the files are not all of one size.
    """
    if isinstance(images, np.ndarray) and size is None:
        return _taken(images, rows)

    def read(row: int) -> Image.Image:
        if isinstance(images, np.ndarray):
            return Image.fromarray(images[row])
        try:
            # What is lost by decoding at twice the size wanted cannot be seen after halving.
            return decode(images[row], size and 2 * size)
        except ValueError as error:
            raise UserError(f"{images[row]}: {error}; `dvc repro -f download` brings it back") from None

    width, height = (size, size) if size else read(0).size
    pixels = np.empty((len(rows), height, width, 3), np.uint8)

    def place(number: int) -> None:
        image = read(rows[number])
        if size:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        elif image.size != (width, height):
            raise different_sizes((width, height), image.size)
        pixels[number] = np.asarray(image)

    in_threads(place, len(rows), description)
    return pixels


def _taken(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`images[rows]`; where they are a mapped file, what has been read of it does not stay in memory beside them."""
    if not isinstance(images, np.memmap) or images.filename is None:
        return images[rows]
    taken = np.empty((len(rows), *images.shape[1:]), images.dtype)
    for start in range(0, len(rows), _BLOCK):
        # Mapped anew each time, as the pages that were read go with the mapping.
        mapped: np.ndarray = np.memmap(images.filename, images.dtype, "r", images.offset, images.shape)
        taken[start : start + _BLOCK] = mapped[rows[start : start + _BLOCK]]
    return taken


def different_sizes(one: tuple[int, int], other: tuple[int, int]) -> UserError:
    """The complaint that images of these widths and heights, in pixels, fit in no array."""
    sizes = " and ".join(f"{width} x {height}" for width, height in (one, other))
    return UserError(
        f"params.yaml: preprocess.image_size: null, but there are images of {sizes} pixels; set it, for example to 64"
    )


def in_threads(work: Callable[[int], None], count: int, description: str) -> None:
    """Call `work` with 0 to `count` - 1, on all cores, with a progress bar; the first error ends it and is raised."""

    def chunk(start: int) -> int:
        numbers = range(start, min(start + _CHUNK, count))
        for number in numbers:
            work(number)
        return len(numbers)

    with (
        progress.bar(count, " images", description, delay=1) as bar,
        # More pixels than Pillow's limit are an error here, not the warning that it makes of up to twice as many.
        warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        try:
            for done in pool.map(chunk, range(0, count, _CHUNK)):
                bar.update(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else Ctrl-C would wait for all that has not begun
            raise
