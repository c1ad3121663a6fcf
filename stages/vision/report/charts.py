"""The charts of the report, as matplotlib figures for a light or a dark page.

To add a chart: write a function here, add it to `make_charts`, and place it in page.html.jinja.

No window and no global state of matplotlib is used. `figure.savefig(path)` writes a PNG, `to_svg(figure)` a small SVG.
The colors are Okabe and Ito's and cividis, which color-blind readers can tell apart; a marker, line style or position
repeats what a color says.
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

from vision.pipeline.formatting import shorten
from vision.pipeline.metrics_schemas import CalibrationBin, ClassScores, CorruptionScore, HistoryRow
from vision.report.results import Results

Theme = Literal["light", "dark"]


@dataclass(frozen=True)
class Palette:
    """The colors of a theme: background, text, secondary text, thin lines, and up to three series."""

    background: str
    text: str
    secondary: str
    line: str
    series: tuple[str, str, str]


PALETTES: dict[Theme, Palette] = {
    "light": Palette("#ffffff", "#1c2024", "#59626d", "#d9dde2", ("#0072b2", "#d55e00", "#009e73")),
    "dark": Palette("#1a1e24", "#e8eaed", "#a3abb6", "#39414b", ("#56b4e9", "#e69f00", "#00b285")),
}
_WIDTH = 4.4  # inches; small, so that text stays legible if a phone shrinks the figure


def make_charts(results: Results, theme: Theme) -> dict[str, Figure]:
    """Draw all charts of a run, by name; the one of corruptions only if they are on."""
    best_epoch = results.train.best_epoch
    figures = {
        "loss": loss_curves(results.history, best_epoch, theme),
        "accuracy": accuracy_curves(results.history, best_epoch, theme),
        "confusion_matrix": confusion_matrix(results.confusion, results.classes, theme),
        "per_class": per_class_bars(results.per_class, theme),
        "calibration": calibration_curve(
            results.calibration, results.calibration_before if results.test.temperature else None, theme
        ),
    }
    if results.corruptions:
        figures["corruptions"] = corruption_heat_map(results.corruptions, theme)
    return figures


def loss_curves(history: Sequence[HistoryRow], best_epoch: int, theme: Theme = "light") -> Figure:
    """Plot the loss by epoch and mark the epoch whose weights were kept."""
    train, val = [row.train_loss for row in history], [row.val_loss for row in history]
    return _epoch_chart("Loss", "Cross-entropy (nats)", train, val, best_epoch, theme)


def accuracy_curves(history: Sequence[HistoryRow], best_epoch: int, theme: Theme = "light") -> Figure:
    """Plot the accuracy by epoch and mark the epoch whose weights were kept."""
    train = [row.train_accuracy * 100 for row in history]
    val = [None if row.val_accuracy is None else row.val_accuracy * 100 for row in history]
    return _epoch_chart("Accuracy", "Accuracy (%)", train, val, best_epoch, theme)


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], theme: Theme = "light") -> Figure:
    """Draw the confusion matrix: color by share of the actual class, with the counts if there are few classes.

    Args:
        counts: integer [K, K], images by actual class (rows) and predicted class (columns).
        classes: the K class names.
        theme: of the page.
    """
    palette = PALETTES[theme]
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    # In inches. The picture stops growing at 300 classes, where the names become too small to read.
    cell = min(float(np.clip(8 / len(classes), 0.12, 0.5)), 36 / len(classes))
    side = max(4.0, 1.6 + cell * len(classes))
    figure, axes = _figure(theme, "Confusion matrix", "Predicted class", "Actual class", size=(side + 0.8, side))
    # The square root makes a mistake of a few percent visible next to a diagonal near 100.
    picture = axes.imshow(shares * 100, cmap="cividis", norm=PowerNorm(0.5, vmin=0, vmax=100))
    names = [shorten(name) for name in classes]
    label_size = min(9.0, cell * 72 * 0.8)
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.tick_params(length=0, labelsize=label_size)
    axes.grid(False)
    if len(classes) <= 20:  # with more, the counts would be too small to read
        for row, column in np.argwhere(counts > 0):
            color = "white" if shares[row, column] < 0.25 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=min(8.0, label_size))
    bar = figure.colorbar(picture, ax=axes, shrink=0.8)
    bar.set_label("Share of the actual class (%)", color=palette.secondary, fontsize=9)
    bar.ax.tick_params(colors=palette.secondary, labelsize=8, length=0)
    bar.outline.set_visible(False)
    return figure


def per_class_bars(rows: Sequence[ClassScores], theme: Theme = "light") -> Figure:
    """Draw three bars for each class, the first class at the top."""
    palette = PALETTES[theme]
    # Inches per class. With up to ten classes the chart is about as tall as the table next to it on the page.
    height = float(np.clip(4 / len(rows), 0.36, 0.8)) if len(rows) <= 30 else 0.18
    figure, axes = _figure(theme, "Scores by class", "Score (%)", "", size=(_WIDTH, 1.1 + height * len(rows)))
    positions = np.arange(len(rows))
    scores = {
        "Precision": [row.precision for row in rows],
        "Recall": [row.recall for row in rows],
        "F1": [row.f1 for row in rows],
    }
    for offset, (name, values), color in zip((-0.26, 0, 0.26), scores.items(), palette.series, strict=True):
        axes.barh(positions + offset, np.asarray(values) * 100, height=0.24, color=color, label=name)
    axes.set_xlim(0, 100)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(positions, [shorten(row.name) for row in rows], parse_math=False)
    axes.tick_params(axis="y", labelcolor=palette.text, labelsize=9 if height > 0.3 else 7)
    axes.grid(False, axis="y")
    _add_legend(figure, palette)
    return figure


def calibration_curve(
    bins: Sequence[CalibrationBin], before: Sequence[CalibrationBin] | None = None, theme: Theme = "light"
) -> Figure:
    """Plot accuracy by confidence (above) and the number of images in each bin of confidence (below).

    Args:
        bins: of the probabilities in use.
        before: of those before temperature scaling, drawn as a second curve.
        theme: of the page.
    """
    palette = PALETTES[theme]
    figure, axes = _figure(theme, "Calibration", "", "Accuracy (%)", size=(_WIDTH, 4.2), height_ratios=(3, 1))
    counts = figure.axes[1]
    axes.plot([0, 100], [0, 100], color=palette.secondary, linestyle="--", linewidth=1, label="Perfect")
    curves = [(bins, "o", "-", palette.series[0], "Calibrated" if before else "Model")]
    curves += [(before, "s", "--", palette.series[1], "Before")] if before else []
    for rows, marker, line, color, label in curves:
        confidence, accuracy = ([getattr(row, name) * 100 for row in rows] for name in ("confidence", "accuracy"))
        style = {"marker": marker, "linestyle": line, "color": color}
        axes.plot(confidence, accuracy, **style, markersize=4.5, linewidth=1.8, label=label)  # type: ignore[arg-type]
    axes.set_ylim(0, 102)
    axes.tick_params(labelbottom=False)
    starts = np.array([row.confidence_from for row in bins]) * 100
    widths = np.array([row.confidence_to for row in bins]) * 100 - starts
    # Bars start at 0.5, so that a bin of one image is visible on the logarithmic axis.
    images = np.array([row.images for row in bins])
    counts.bar(starts, images - 0.5, widths * 0.9, bottom=0.5, align="edge", color=palette.series[0])
    counts.set_yscale("log")
    counts.minorticks_off()
    counts.set_ylim(bottom=0.5)
    counts.set_ylabel("Images (log)", color=palette.secondary, fontsize=9)
    counts.set_xlabel("Confidence (%)", color=palette.secondary, fontsize=9)
    for each in (axes, counts):
        each.set_xlim(0, 102)
    _add_legend(figure, palette)
    return figure


def corruption_heat_map(rows: Sequence[CorruptionScore], theme: Theme = "light") -> Figure:
    """Draw the accuracy for each corruption (row) and severity (column): color and percent.

    Args:
        rows: in the order of the corruptions, each at severity 1 to 5.
        theme: of the page.
    """
    names = list(dict.fromkeys(row.corruption for row in rows))
    percent = 100 * np.array([row.accuracy for row in rows]).reshape(len(names), -1)
    figure, axes = _figure(theme, "Corrupted images", "Severity", "", size=(_WIDTH, 1.2 + 0.27 * len(names)))
    axes.imshow(percent, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(percent.shape[1]), [str(row.severity) for row in rows[: percent.shape[1]]])
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.grid(False)
    for (row, column), value in np.ndenumerate(percent):
        color = "white" if value < 50 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)
    return figure


def to_svg(figure: Figure) -> bytes:
    """Convert a figure to SVG: transparent, text in the reader's own font, identical bytes for identical figures."""
    fonts = ["Segoe UI", "Roboto", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"]
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "figures", "font.sans-serif": fonts}
    buffer = io.BytesIO()
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _epoch_chart(
    title: str, unit: str, train: list[float], val: list[float | None], best_epoch: int, theme: Theme
) -> Figure:
    """Plot one value per epoch for each split; `val` is left out if it is None in each epoch."""
    palette = PALETTES[theme]
    figure, axes = _figure(theme, title, "Epoch", unit, size=(_WIDTH, 3.0))
    epochs = np.arange(1, len(train) + 1)
    size = 4.5 if len(train) <= 40 else 0  # without a marker, a single epoch would be invisible
    axes.plot(epochs, train, color=palette.series[0], marker="o", markersize=size, linewidth=1.8, label="Training")
    if any(value is not None for value in val):
        style = {"color": palette.series[1], "marker": "s", "linestyle": "--"}
        axes.plot(epochs, val, **style, markersize=size, linewidth=1.8, label="Validation")  # type: ignore[arg-type]
    label = f"Kept weights: epoch {best_epoch}"
    axes.axvline(best_epoch, color=palette.secondary, linestyle=":", linewidth=1.2, label=label)
    axes.set_xlim(1 - 0.03 * len(train), len(train) * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _add_legend(figure, palette)
    return figure


def _figure(
    theme: Theme, title: str, x: str, y: str, *, size: tuple[float, float], height_ratios: tuple[int, ...] = (1,)
) -> tuple[Figure, Axes]:
    """Make a figure with axes one below the other; the title and labels are those of the first, which is returned."""
    palette = PALETTES[theme]
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor=palette.background)
    grid = figure.subplots(len(height_ratios), squeeze=False, height_ratios=height_ratios)
    for axes in grid[:, 0]:
        axes.set_facecolor(palette.background)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(palette.line)
        # rcParams would have no effect here, because ticks are created when the figure is drawn.
        axes.tick_params(colors=palette.secondary, labelsize=9, length=0)
        axes.grid(color=palette.line, linewidth=0.7)
        axes.set_axisbelow(True)
    first = cast(Axes, grid[0, 0])
    first.set_title(title, loc="left", color=palette.text, fontsize=11, fontweight="bold", pad=10)
    first.set_xlabel(x, color=palette.secondary, fontsize=9)
    first.set_ylabel(y, color=palette.secondary, fontsize=9)
    return figure, first


def _add_legend(figure: Figure, palette: Palette) -> None:
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=palette.text, fontsize=9)
