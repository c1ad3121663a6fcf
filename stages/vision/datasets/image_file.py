"""Image files to pixels: decoding to RGB with 8 bits per channel, and scaling to the size of the training images.

This module imports nothing of `vision`, because each model in MLflow carries a copy; see
`prediction.mlflow_format`. So every use of a model turns a file into the same pixels as the `preprocess` stage.
"""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
            ".tiff", ".webp"}  # fmt: skip
"""Suffixes of the files that count as images, compared in lower case."""
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_MAX_SIDE = 65_535


def read_pixels(content: bytes, height: int, width: int) -> np.ndarray:
    """Decode an image file and scale it to the size of the training images.

    Args:
        content: the content of an image file.
        height: of the training images, in pixels.
        width: of the training images, in pixels.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: the content cannot be decoded; see `decode`.
    """
    return np.asarray(fit(decode(io.BytesIO(content), 2 * max(height, width)), height, width))


def decode(file: Path | BinaryIO, min_size: int | None = None) -> Image.Image:
    """Decode the first image in a file, rotate it as its EXIF orientation says, and convert it to mode RGB.

    Transparent pixels become white. Images with 16 bits per channel are reduced to 8.

    Args:
        file: in one of the supported formats, whatever its suffix.
        min_size: if given, a JPEG may be decoded at a fraction of its size, with no side below this many pixels, which
            is much faster. An image that is decoded at twice the final size and then scaled down looks the same.

    Raises:
        ValueError: the file has another format, is truncated or too large, or has pixels with no natural range.
    """
    try:
        # Only these formats: some others of Pillow's run external programs, and the files are untrusted.
        with Image.open(file, formats=_FORMATS) as image:
            if max(image.size) > _MAX_SIDE:
                raise ValueError(f"{image.width:,} x {image.height:,} pixels, more than {_MAX_SIDE:,} on a side")
            limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns of sizes up to twice its limit
            if limit is not None and image.width * image.height > limit:
                raise ValueError(f"{image.width:,} x {image.height:,} pixels, more than {limit:,} in all")
            if min_size is not None:
                image.draft(None, (min_size, min_size))
            image.load()
            return _convert_to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ValueError("not an image, or truncated at its beginning") from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"{error}" or type(error).__name__) from None


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale an image (bicubic, antialiased) until it covers `width` x `height` pixels, and crop it to its center."""
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


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
