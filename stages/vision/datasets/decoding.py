"""Loading of many images, from files or an array, resized to one size."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from vision.datasets.image_file import decode, fit
from vision.pipeline import progress
from vision.pipeline.errors import UserError

_THREAD_CHUNK = 16  # images per task of a thread
_COPY_CHUNK = 10_000  # images per copy from a mapped file


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
            return decode(images[index], size and 2 * size)
        except ValueError as error:
            raise UserError(f"{images[index]}: {error}; `dvc repro -f download` restores it") from None

    width, height = (size, size) if size else read(0).size
    pixels = np.empty((len(indices), height, width, 3), np.uint8)

    def load(position: int) -> None:
        image = read(indices[position])
        if size:
            image = fit(image, size, size)
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
        warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),  # `decode` refuses them
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        try:
            for done in pool.map(run_chunk, range(0, count, _THREAD_CHUNK)):
                bar.update(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # otherwise Ctrl-C waits for all tasks that have not started
            raise
