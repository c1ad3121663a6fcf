"""Decoding of image files to RGB with 8 bits per channel, and resizing to one size."""

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
"""Suffixes of the files that count as images, compared in lower case."""
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_MAX_SIDE = 65_535
_THREAD_CHUNK = 16  # images per task of a thread
_COPY_CHUNK = 10_000  # images per copy from a mapped file


def decode(path: Path, min_size: int | None = None) -> Image.Image:
    """Decode the first image in a file, rotate it as its EXIF orientation says, and convert it to mode RGB.

    Transparent pixels become white. Images with 16 bits per channel are reduced to 8.

    Args:
        path: a file in one of the supported formats, whatever its suffix.
        min_size: if given, a JPEG may be decoded at a fraction of its size, with no side below this many pixels, which
            is much faster.

    Raises:
        ValueError: the file has another format, is truncated or too large, or has pixels with no natural range.
    """
    try:
        # Only these formats: some others of Pillow's run external programs, and the files are untrusted.
        with Image.open(path, formats=_FORMATS) as image:
            if max(image.size) > _MAX_SIDE:
                raise ValueError(f"{image.width:,} x {image.height:,} pixels, more than {_MAX_SIDE:,} on a side")
            if min_size is not None:
                image.draft(None, (min_size, min_size))
            image.load()
            return _convert_to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ValueError("not an image, or truncated at its beginning") from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"{error}" or type(error).__name__) from None


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion clips values above 255
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() >= 2**16:
            raise ValueError("pixels of more than 16 bits; save it with 8 or 16")
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        background.alpha_composite(image.convert("RGBA"))
        return background.convert("RGB")
    return image.convert("RGB")


def load_images(
    images: np.ndarray | Sequence[Path], indices: np.ndarray, size: int | None, description: str = "resize"
) -> np.ndarray:
    """Load some of the images into one array, resized (bicubic, antialiased) and cropped to the center square.

    Args:
        images: uint8 [N, H, W, 3], or N image files.
        indices: integer [n], the images to load, in this order.
        size: side in pixels that the shorter side is resized to; None keeps the size.
        description: label of the progress bar.

    Returns:
        uint8 [n, size, size, 3], or [n, H, W, 3] if size is None.

    Raises:
        UserError: a file cannot be decoded, or size is None and the files differ in size.
    """
    if isinstance(images, np.ndarray) and size is None:
        return _select(images, indices)

    def read(index: int) -> Image.Image:
        if isinstance(images, np.ndarray):
            return Image.fromarray(images[index])
        try:
            # A JPEG decoded at twice the final size and then halved looks the same as one decoded at full size.
            return decode(images[index], size and 2 * size)
        except ValueError as error:
            raise UserError(f"{images[index]}: {error}; `dvc repro -f download` restores it") from None

    width, height = (size, size) if size else read(0).size
    pixels = np.empty((len(indices), height, width, 3), np.uint8)

    def load(position: int) -> None:
        image = read(indices[position])
        if size:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        elif image.size != (width, height):
            raise size_error((width, height), image.size)
        pixels[position] = np.asarray(image)

    run_in_threads(load, len(indices), description)
    return pixels


def _select(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """`images[indices]`; the pages of a mapped file do not stay in memory."""
    if not isinstance(images, np.memmap) or images.filename is None:
        return images[indices]
    selected = np.empty((len(indices), *images.shape[1:]), images.dtype)
    for start in range(0, len(indices), _COPY_CHUNK):
        # A new mapping for each chunk: the pages that were read are freed with the mapping.
        mapped: np.ndarray = np.memmap(images.filename, images.dtype, "r", images.offset, images.shape)
        selected[start : start + _COPY_CHUNK] = mapped[indices[start : start + _COPY_CHUNK]]
    return selected


def size_error(first: tuple[int, int], second: tuple[int, int]) -> UserError:
    """The error for images of two sizes, each (width, height) in pixels, if no common size is set."""
    sizes = " and ".join(f"{width} x {height}" for width, height in (first, second))
    return UserError(
        f"params.yaml: preprocess.image_size: null, but there are images of {sizes} pixels; set it, for example to 64"
    )


def run_in_threads(work: Callable[[int], None], count: int, description: str) -> None:
    """Call `work` with 0 to `count` - 1 on all cores, with a progress bar; the first error ends it and is raised."""

    def run_chunk(start: int) -> int:
        numbers = range(start, min(start + _THREAD_CHUNK, count))
        for number in numbers:
            work(number)
        return len(numbers)

    with (
        progress.bar(count, " images", description, delay=1) as bar,
        # Pillow only warns of images above its pixel limit, up to twice the limit; here they are errors.
        warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        try:
            for done in pool.map(run_chunk, range(0, count, _THREAD_CHUNK)):
                bar.update(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # otherwise Ctrl-C waits for all tasks that have not started
            raise
