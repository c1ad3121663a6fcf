"""Image files of every supported kind, and files that are none.

    photos = make_photos(tmp_path / "photos")
    broken = make_unreadable(tmp_path / "photos")

All photos show the same scene: a bright upper half and a dark lower half, after rotation as the EXIF data says.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 60, 40
"""Size of all photos in pixels, after rotation."""
BRIGHT, DARK = (220, 200, 60), (30, 50, 20)
_ORIENTATION = 0x0112  # the EXIF tag
_ROTATIONS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""By EXIF orientation: how the stored image is rotated against the photo."""


def make_photos(folder: Path) -> dict[str, Path]:
    """Write one file of each kind to a folder, which may exist.

    Returns:
        The files by kind. Some of them are in sub-folders, and one has the suffix of another format.
    """
    photos = {kind: folder / name for kind, (name, _) in _KINDS.items()}
    for kind, path in photos.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        _KINDS[kind][1](path)
    return photos


def make_unreadable(folder: Path) -> dict[str, Path]:
    """Write files with the suffix of an image that cannot be decoded; returns them by what is wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"empty": b"", "text": b"not an image\n"}
    source = folder / "whole.png"
    _scene().save(source)
    contents["truncated"] = source.read_bytes()[:60]
    source.unlink()
    paths = {kind: folder / f"{kind}.png" for kind in contents}
    for kind, content in contents.items():
        paths[kind].write_bytes(content)
    return paths


def _scene() -> Image.Image:
    pixels = np.full((HEIGHT, WIDTH, 3), DARK, np.uint8)
    pixels[: HEIGHT // 2] = BRIGHT
    return Image.fromarray(pixels)


def _save(**options: Any) -> Callable[[Path], None]:
    """Return a function that saves the photo with options of Pillow's."""
    return lambda path: _scene().save(path, **options)


def _convert(mode: str) -> Callable[[Path], None]:
    return lambda path: _scene().convert(mode).save(path)


def _rotate(orientation: int) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        _scene().transpose(_ROTATIONS[orientation]).save(path, exif=exif)

    return save


def _save_alpha(path: Path) -> None:
    """The upper half is transparent, so it becomes white."""
    image = _scene().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat([[0], [255]], HEIGHT // 2, 0).astype(np.uint8)).resize(image.size))
    image.save(path)


def _save_16_bits(path: Path) -> None:
    Image.fromarray(np.asarray(_scene().convert("L")).astype(np.uint16) * 257).save(path)


def _save_animation(path: Path) -> None:
    """The second frame is upside down."""
    second = _scene().transpose(Image.Transpose.ROTATE_180)
    _scene().save(path, save_all=True, append_images=[second], duration=100)


_KINDS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "png": ("plain.png", _save()),
    "jpeg": ("plain.jpg", _save(quality=95)),
    "upper-case suffix": ("PLAIN.JPEG", _save(format="JPEG", quality=95)),
    "wrong suffix": ("png_in_disguise.jpg", _save(format="PNG")),
    "exif 180": ("rotated/180.jpg", _rotate(3)),
    "exif 90": ("rotated/90.jpg", _rotate(6)),
    "exif 270": ("rotated/270.jpg", _rotate(8)),
    "alpha": ("modes/alpha.png", _save_alpha),
    "palette": ("modes/palette.png", _convert("P")),
    "gray": ("modes/gray.png", _convert("L")),
    "16-bit gray": ("modes/gray16.png", _save_16_bits),
    "cmyk": ("modes/cmyk.jpg", _convert("CMYK")),
    "animated gif": ("formats/animated.gif", _save_animation),
    "webp": ("formats/photo.webp", _save(quality=95)),
    "animated webp": ("formats/animated.webp", _save_animation),
    "avif": ("formats/photo.avif", _save(quality=95)),
    "bmp": ("formats/photo.bmp", _save()),
    "tiff": ("formats/photo.tif", _save()),
    "jpeg 2000": ("formats/deep/photo.jp2", _save()),
}
