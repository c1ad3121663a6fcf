"""The picture of sample images by class, data/samples.png."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vision.pipeline.formatting import shorten
from vision.storage.arrays import Split, evenly_spaced

_BACKGROUND, _TEXT = "#1a1e24", "#e8eaed"  # the dark theme of the report, which suits photographs on any page
_MAX_ROWS = 200


def sample_grid(split: Split, classes: Sequence[str], per_class: int) -> Figure:
    """Draw one row per class: its name and up to `per_class` images, evenly spaced over the split.

    Small images are enlarged by an integer factor, so that each pixel is a sharp square. If there are more than 200
    classes, 200 of them are shown.

    Args:
        split: images uint8 [N, H, W, C], where C is 1 (gray) or 3 (RGB), and their labels.
        classes: the class names, in the order of the labels.
        per_class: the number of columns; a class with fewer images leaves the rest of its row empty.
    """
    images, labels = split.images, split.labels
    shrink, enlarge = _scale_factors(images.shape[1])
    height, width = (-(-side // shrink) for side in images.shape[1:3])
    gap = max(1, height // 16)
    background = (np.array(mpl.colors.to_rgb(_BACKGROUND)) * 255).round().astype(np.uint8)
    rows = evenly_spaced(len(classes), _MAX_ROWS)
    mosaic = np.tile(background, (len(rows) * (height + gap) - gap, per_class * (width + gap) - gap, 1))
    for row, label in enumerate(rows):
        indices = np.flatnonzero(labels == label)
        for column, index in enumerate(indices[evenly_spaced(len(indices), per_class)]):
            top, left = row * (height + gap), column * (width + gap)
            rgb = np.broadcast_to(images[index], (*images.shape[1:3], 3))
            mosaic[top : top + height, left : left + width] = np.asarray(Image.fromarray(rgb).reduce(shrink))

    # All sizes are whole pixels of the picture, so that the pixels of the images align with them.
    names = [shorten(classes[label]) for label in rows]
    left_margin, top_margin, margin = 40 + 13 * max(map(len, names)), 76, 22
    grid_height, grid_width = (side * enlarge for side in mosaic.shape[:2])
    total_height = top_margin + grid_height + margin
    total_width = left_margin + max(grid_width, 270) + margin  # the title needs 270
    dpi = 150
    figure = Figure(figsize=(total_width / dpi, total_height / dpi), dpi=dpi, facecolor=_BACKGROUND)
    axes = figure.add_axes(
        (left_margin / total_width, margin / total_height, grid_width / total_width, grid_height / total_height)
    )
    axes.imshow(mosaic, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks(np.arange(len(rows)) * (height + gap) + height / 2 - 0.5, names, parse_math=False)
    axes.tick_params(length=0, labelcolor=_TEXT, labelsize=9)
    axes.set_frame_on(False)
    title = "Sample images by class"
    if len(rows) < len(classes):
        title = f"Sample images of {len(rows)} of {len(classes):,} classes"
    axes.set_title(title, loc="left", color=_TEXT, fontsize=10, fontweight="bold")
    return figure


def _scale_factors(height: int) -> tuple[int, int]:
    """Return the integer factors to shrink and then enlarge an image by, to a height of about 64 pixels."""
    return -(-height // 96), max(1, round(64 / height))
