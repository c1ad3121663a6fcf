"""A page with a thumbnail of each image and its prediction: gallery.html.jinja with the script gallery.js inside."""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from vision.datasets import image_file
from vision.datasets.decoding import run_in_threads
from vision.prediction.predictions import Prediction
from vision.prediction.predictor import Predictor
from vision.storage.arrays import evenly_spaced
from vision.storage.atomic import atomic_write

MAX_IMAGES = 10_000
"""Images that a page shows; of more, evenly spaced ones."""
THUMBNAIL_SIZE = 128
"""Largest side of a thumbnail in pixels. One takes about 1.5 kB, of an image of 32 x 32 pixels 0.4 kB."""
_QUALITY = 80
_FOLDER = Path(__file__).parent


def write_page(path: Path, rows: Sequence[Prediction], predictor: Predictor) -> None:
    """Write the page. It needs no other file and no network.

    Raises:
        OSError: the page cannot be written; `filename` is `path`.
    """
    selected = [rows[index] for index in evenly_spaced(len(rows), MAX_IMAGES)]
    thumbnails = [""] * len(selected)

    def load(number: int) -> None:
        thumbnails[number] = make_thumbnail(selected[number].image)

    run_in_threads(load, len(selected), "page")
    with atomic_write(path) as temporary:
        temporary.write_text(render(selected, thumbnails, len(rows), predictor), encoding="utf-8")


def make_thumbnail(file: str) -> str:
    """The center of an image as WebP in base64; an empty text if the file cannot be read any more."""
    try:
        image = image_file.decode(io.BytesIO(Path(file).read_bytes()), 2 * THUMBNAIL_SIZE)
    except (OSError, ValueError):
        return ""
    size = min(THUMBNAIL_SIZE, *image.size)
    content = io.BytesIO()
    image_file.fit(image, size, size).save(content, "WEBP", quality=_QUALITY)
    return base64.b64encode(content.getvalue()).decode()


def render(rows: Sequence[Prediction], thumbnails: Sequence[str], total: int, predictor: Predictor) -> str:
    """Render the page.

    Args:
        rows: predictions of the images on the page.
        thumbnails: of these images, as `make_thumbnail` returns them.
        total: how many images were classified.
        predictor: the model that did it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = "{:,}".format
    index_of = {name: index for index, name in enumerate(predictor.classes)}
    classes = [*predictor.classes, "unknown"]
    indices = [len(index_of) if row.unknown else index_of[row.class_name] for row in rows]
    images = [
        [row.image, index, round(row.probability, 6), thumbnail]
        for row, index, thumbnail in zip(rows, indices, thumbnails, strict=True)
    ]
    script = (_FOLDER / "gallery.js").read_text(encoding="utf-8")
    source = predictor.source
    version = f" {'run' if source.uri.startswith('runs:') else 'version'} {source.version}" if source.version else ""
    return environment.get_template("gallery.html.jinja").render(
        classes=classes,
        counts=sorted(Counter(indices).items()),
        images=images,
        total=total,
        model=f"{source.name}{version}",
        script=Markup(script),  # noqa: S704  (a file of this package)
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
