"""Matplotlib figures from arrays and plain values, each for a light or a dark page.

The functions return a `matplotlib.figure.Figure` that no window and no global state knows of; `figure.savefig(path)`
makes a PNG and `to_svg(figure)` a small SVG. Colours are Okabe and Ito's and cividis, which colour-blind eyes can tell
apart; what a colour says, a marker, a line style or a position says too.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

Theme = Literal["light", "dark"]


@dataclass(frozen=True)
class Palette:
    """The colours of a theme: of the ground, the text, lesser text, thin lines, and up to three series."""

    ground: str
    ink: str
    muted: str
    line: str
    colours: tuple[str, str, str]


PALETTES: dict[Theme, Palette] = {
    "light": Palette("#ffffff", "#1c2024", "#59626d", "#d9dde2", ("#0072b2", "#d55e00", "#009e73")),
    "dark": Palette("#1a1e24", "#e8eaed", "#a3abb6", "#39414b", ("#56b4e9", "#e69f00", "#00b285")),
}
_WIDTH = 4.4  # inches: small enough that the text stays legible where a phone shrinks the figure
_LONGEST_NAME = 22
_MOST_ROWS = 200  # of the sample picture


def sample_grid(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], per_class: int) -> Figure:
    """A row a class: its name and up to `per_class` of its images, taken evenly from the whole split.

    The ground is dark, which suits photographs and goes with light and dark pages alike. Small images are enlarged
    by a whole factor, so that every pixel stays a sharp square. Of more than 200 classes, 200 are shown, evenly taken.

    Args:
        images: uint8 [N, H, W, C] with C 1 (grey) or 3 (RGB).
        labels: integer [N], indices into `classes`.
        classes: the names, in the order of the labels.
        per_class: columns of the grid; a class with fewer images leaves the rest of its row empty.
    """
    palette = PALETTES["dark"]
    shrink, enlarge = _whole_factors(images.shape[1])
    height, width = (-(-side // shrink) for side in images.shape[1:3])
    gap = max(1, height // 16)
    ground = (np.array(mpl.colors.to_rgb(palette.ground)) * 255).round().astype(np.uint8)
    shown = evenly(len(classes), _MOST_ROWS)
    mosaic = np.tile(ground, (len(shown) * (height + gap) - gap, per_class * (width + gap) - gap, 1))
    for row, label in enumerate(shown):
        members = np.flatnonzero(labels == label)
        for column, index in enumerate(members[evenly(len(members), per_class)]):
            top, left = row * (height + gap), column * (width + gap)
            rgb = np.broadcast_to(images[index], (*images.shape[1:3], 3))
            mosaic[top : top + height, left : left + width] = np.asarray(Image.fromarray(rgb).reduce(shrink))

    # All in whole pixels of the picture, so that those of the images meet them.
    names = [_short(classes[label]) for label in shown]
    left_margin, top_margin, margin = 40 + 13 * max(map(len, names)), 76, 22
    grid_height, grid_width = (side * enlarge for side in mosaic.shape[:2])
    total_height = top_margin + grid_height + margin
    total_width = left_margin + max(grid_width, 270) + margin  # the title needs 270
    dpi = 150
    figure = Figure(figsize=(total_width / dpi, total_height / dpi), dpi=dpi, facecolor=palette.ground)
    axes = figure.add_axes(
        (left_margin / total_width, margin / total_height, grid_width / total_width, grid_height / total_height)
    )
    axes.imshow(mosaic, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks(np.arange(len(shown)) * (height + gap) + height / 2 - 0.5, names, parse_math=False)
    axes.tick_params(length=0, labelcolor=palette.ink, labelsize=9)
    axes.set_frame_on(False)
    title = "Sample images by class"
    if len(shown) < len(classes):
        title = f"Sample images of {len(shown)} of {len(classes):,} classes"
    axes.set_title(title, loc="left", color=palette.ink, fontsize=10, fontweight="bold")
    return figure


def loss_curves(
    train: Sequence[float], val: Sequence[float] | None, *, best_epoch: int | None = None, theme: Theme = "light"
) -> Figure:
    """Loss over epochs.

    Args:
        train: mean cross-entropy of each epoch's training images, in nats.
        val: the same for the validation split, or None where there is none.
        best_epoch: the epoch, counted from 1, whose weights were kept; None marks none.
        theme: the page that the figure is for.
    """
    return _curves("Loss", "Cross-entropy (nats)", train, val, best_epoch, theme)


def accuracy_curves(
    train: Sequence[float], val: Sequence[float] | None, *, best_epoch: int | None = None, theme: Theme = "light"
) -> Figure:
    """Accuracy over epochs; like `loss_curves`, with shares of right answers in [0, 1]."""
    percent = [share * 100 for share in train], None if val is None else [share * 100 for share in val]
    return _curves("Accuracy", "Accuracy (%)", *percent, best_epoch, theme)


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], *, theme: Theme = "light") -> Figure:
    """Which class was taken for which.

    Args:
        counts: integer [K, K], images by actual class (rows) and predicted class (columns).
        classes: the K names.
        theme: the page that the figure is for.
    """
    palette = PALETTES[theme]
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    # In inches. With more than 300 classes the names get too small to read, but the picture no larger.
    cell = min(float(np.clip(8 / len(classes), 0.12, 0.5)), 36 / len(classes))
    side = max(4.0, 1.6 + cell * len(classes))
    figure, axes = _figure(theme, "Confusion matrix", "Predicted class", "Actual class", size=(side + 0.8, side))
    # The square root brings out the few per cent of a frequent mistake beside a diagonal near 100.
    picture = axes.imshow(shares * 100, cmap="cividis", norm=PowerNorm(0.5, vmin=0, vmax=100))
    names = [_short(name) for name in classes]
    label_size = min(9.0, cell * 72 * 0.8)
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.tick_params(length=0, labelsize=label_size)
    axes.grid(False)
    if len(classes) <= 20:  # more would be too small to read
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] < 0.25 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=min(8.0, label_size))
    bar = figure.colorbar(picture, ax=axes, shrink=0.8)
    bar.set_label("Share of the actual class (%)", color=palette.muted, fontsize=9)
    bar.ax.tick_params(colors=palette.muted, labelsize=8, length=0)
    bar.outline.set_visible(False)
    return figure


def per_class_bars(
    classes: Sequence[str],
    precision: Sequence[float],
    recall: Sequence[float],
    f1: Sequence[float],
    *,
    theme: Theme = "light",
) -> Figure:
    """Three bars a class, from top to bottom in the order of `classes`; the scores are in [0, 1]."""
    palette = PALETTES[theme]
    row = 0.36 if len(classes) <= 30 else 0.18  # inches
    figure, axes = _figure(theme, "Scores by class", "Score (%)", "", size=(_WIDTH, 1.1 + row * len(classes)))
    places = np.arange(len(classes))
    scores = {"Precision": precision, "Recall": recall, "F1": f1}
    for place, (name, values), colour in zip((-0.26, 0, 0.26), scores.items(), palette.colours, strict=True):
        axes.barh(places + place, np.asarray(values) * 100, height=0.24, color=colour, label=name)
    axes.set_xlim(0, 100)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_yticks(places, [_short(name) for name in classes], parse_math=False)
    axes.tick_params(axis="y", labelcolor=palette.ink, labelsize=9 if row > 0.3 else 7)
    axes.grid(False, axis="y")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=palette.ink, fontsize=9)
    return figure


def calibration_curve(
    edges: Sequence[tuple[float, float]],
    images: Sequence[int],
    confidence: Sequence[float],
    accuracy: Sequence[float],
    *,
    theme: Theme = "light",
) -> Figure:
    """How often the model is right when it is so sure (above), and how often it is so sure (below).

    Args:
        edges: the confidences, in [0, 1], between which each bin lies; empty bins are left out.
        images: test images in each bin.
        confidence: mean confidence of each bin.
        accuracy: share of right answers of each bin.
        theme: the page that the figure is for.
    """
    palette = PALETTES[theme]
    figure, axes = _figure(theme, "Calibration", "", "Accuracy (%)", size=(_WIDTH, 4.2), rows=(3, 1))
    counts = figure.axes[1]
    axes.plot([0, 100], [0, 100], color=palette.muted, linestyle="--", linewidth=1, label="Perfectly calibrated")
    percent = np.asarray(confidence) * 100, np.asarray(accuracy) * 100
    axes.plot(*percent, color=palette.colours[0], marker="o", markersize=4.5, linewidth=1.8, label="Model")
    axes.set_ylim(0, 102)
    axes.tick_params(labelbottom=False)
    starts = np.array([edge[0] for edge in edges]) * 100
    widths = np.array([edge[1] for edge in edges]) * 100 - starts
    # From half an image, so that a bin of one image can be seen on the logarithmic axis.
    counts.bar(starts, np.asarray(images) - 0.5, widths * 0.9, bottom=0.5, align="edge", color=palette.colours[0])
    counts.set_yscale("log")
    counts.minorticks_off()
    counts.set_ylim(bottom=0.5)
    counts.set_ylabel("Images (log)", color=palette.muted, fontsize=9)
    counts.set_xlabel("Confidence (%)", color=palette.muted, fontsize=9)
    for each in (axes, counts):
        each.set_xlim(0, 102)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=palette.ink, fontsize=9)
    return figure


def evenly(total: int, wanted: int) -> np.ndarray:
    """Up to `wanted` different indices below `total`, evenly spread, in rising order."""
    return np.linspace(0, total - 1, min(total, wanted)).round().astype(int)


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG: transparent, text as text in the reader's own font, the same bytes for the same figure."""
    fonts = ["Segoe UI", "Roboto", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"]
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "figures", "font.sans-serif": fonts}
    buffer = io.BytesIO()
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _curves(
    title: str,
    unit: str,
    train: Sequence[float],
    val: Sequence[float] | None,
    best_epoch: int | None,
    theme: Theme,
) -> Figure:
    palette = PALETTES[theme]
    figure, axes = _figure(theme, title, "Epoch", unit, size=(_WIDTH, 3.0))
    epochs = np.arange(1, len(train) + 1)
    size = 4.5 if len(train) <= 40 else 0  # one epoch is one point: without a marker there would be nothing to see
    axes.plot(epochs, train, color=palette.colours[0], marker="o", markersize=size, linewidth=1.8, label="Training")
    if val is not None:
        style = {"color": palette.colours[1], "marker": "s", "linestyle": "--"}
        axes.plot(epochs, val, **style, markersize=size, linewidth=1.8, label="Validation")  # type: ignore[arg-type]
    if best_epoch is not None:
        axes.axvline(best_epoch, color=palette.muted, linestyle=":", linewidth=1.2, label=f"Kept: epoch {best_epoch}")
    axes.set_xlim(1 - 0.03 * len(train), len(train) * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=palette.ink, fontsize=9)
    return figure


def _figure(
    theme: Theme, title: str, x: str, y: str, *, size: tuple[float, float], rows: tuple[int, ...] = (1,)
) -> tuple[Figure, Axes]:
    """An empty figure with calm axes, one below the other; the title and the labels are those of the first."""
    palette = PALETTES[theme]
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor=palette.ground)
    grid = figure.subplots(len(rows), squeeze=False, height_ratios=rows)
    for axes in grid[:, 0]:
        axes.set_facecolor(palette.ground)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(palette.line)
        # Not through rcParams: ticks are made as late as when the figure is drawn.
        axes.tick_params(colors=palette.muted, labelsize=9, length=0)
        axes.grid(color=palette.line, linewidth=0.7)
        axes.set_axisbelow(True)
    first = cast(Axes, grid[0, 0])
    first.set_title(title, loc="left", color=palette.ink, fontsize=11, fontweight="bold", pad=10)
    first.set_xlabel(x, color=palette.muted, fontsize=9)
    first.set_ylabel(y, color=palette.muted, fontsize=9)
    return figure, first


def _whole_factors(height: int) -> tuple[int, int]:
    """Whole factors to shrink and to enlarge an image by, so that it becomes about 64 pixels high."""
    return -(-height // 96), max(1, round(64 / height))


def _short(name: str) -> str:
    """A class name on one line that leaves room for the figure."""
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "…"
