"""Each chart draws the values that it is given, and has labels."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from vision.pipeline.metrics_schemas import CalibrationBin, ClassScores, CorruptionScore, HistoryRow
from vision.report import charts

CLASSES = ["cat", "dog", "a class with a name that is far too long"]


def history(*epochs: tuple[float, float | None, float, float | None]) -> list[HistoryRow]:
    """Rows of history.csv from the losses and accuracies: of training, validation, training and validation."""
    common = {"lr": 0.1, "image_scale": 1.0, "images": 10}
    names = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    return [
        HistoryRow.model_validate({"epoch": number, **common, **dict(zip(names, values, strict=True))})
        for number, values in enumerate(epochs, 1)
    ]


def scores(*rows: tuple[float, float, float], names: Sequence[str] = CLASSES) -> list[ClassScores]:
    return [
        ClassScores(name=name, precision=precision, recall=recall, recall_low=0, recall_high=1, f1=f1, images=5)
        for name, (precision, recall, f1) in zip(names, rows, strict=True)
    ]


def bins(few: int, many: int) -> list[CalibrationBin]:
    return [
        CalibrationBin(confidence_from=0.5, confidence_to=0.75, images=few, confidence=0.6, accuracy=0.5),
        CalibrationBin(confidence_from=0.75, confidence_to=1.0, images=many, confidence=0.9, accuracy=0.8),
    ]


CORRUPTIONS = [
    CorruptionScore(corruption=name, severity=severity, images=10, accuracy=(number + severity) / 10)
    for number, name in enumerate(["fog", "zoom_blur"])
    for severity in range(1, 6)
]
HISTORY = history((2.0, 2.1, 0.3, 0.2), (1.0, 1.2, 0.6, 0.5))


def pixels(figure: Figure) -> np.ndarray:
    """The figure as it is drawn, uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def every_chart(theme: charts.Theme) -> dict[str, Figure]:
    return {
        "loss": charts.loss_curves(HISTORY, 2, theme),
        "accuracy": charts.accuracy_curves(HISTORY, 2, theme),
        "confusion_matrix": charts.confusion_matrix(np.diag([3, 4, 5]), CLASSES, theme),
        "per_class": charts.per_class_bars(scores(*[(0.9, 0.8, 0.85)] * 3), theme),
        "calibration": charts.calibration_curve(bins(10, 1000), bins(500, 510), theme),
        "corruptions": charts.corruption_heat_map(CORRUPTIONS, theme),
    }


def legend_of(figure: Figure) -> list[str]:
    legends = [child for child in figure.get_children() if isinstance(child, Legend)]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_loss_curves_draw_both_splits_by_epoch() -> None:
    epochs = history((2.0, 2.1, 0.3, 0.2), (1.0, 1.2, 0.6, 0.5), (0.5, 0.9, 0.7, 0.6))
    figure = charts.loss_curves(epochs, best_epoch=2)
    (axes,) = figure.axes
    assert (axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()) == ("Loss", "Epoch", "Cross-entropy (nats)")
    train, val, best = axes.get_lines()
    assert np.array_equal(train.get_xydata(), [[1, 2.0], [2, 1.0], [3, 0.5]])
    assert np.array_equal(val.get_xydata(), [[1, 2.1], [2, 1.2], [3, 0.9]])
    assert list(np.unique(best.get_xdata())) == [2]
    assert legend_of(figure) == ["Training", "Validation", "Kept weights: epoch 2"]
    assert (train.get_marker(), train.get_linestyle()) != (val.get_marker(), val.get_linestyle())


def test_accuracy_is_drawn_in_percent() -> None:
    (axes,) = charts.accuracy_curves(HISTORY, best_epoch=2).axes
    assert axes.get_ylabel() == "Accuracy (%)"
    for line, percent in zip(axes.get_lines()[:2], ([30, 60], [20, 50]), strict=True):
        assert np.allclose(line.get_xydata(), np.transpose([[1, 2], percent]))


def test_curves_without_validation_show_only_training() -> None:
    figure = charts.loss_curves(history((2.0, None, 0.3, None), (1.0, None, 0.6, None)), best_epoch=2)
    assert legend_of(figure) == ["Training", "Kept weights: epoch 2"]


def test_a_single_epoch_is_a_visible_point_with_an_integer_tick() -> None:
    figure = charts.loss_curves(history((2.0, None, 0.3, None)), best_epoch=1)
    (axes,) = figure.axes
    line, _ = axes.get_lines()
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    assert line.get_marker() == "o"
    assert line.get_markersize() > 0
    assert low < 1 < high
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_confusion_matrix_colors_shares_and_writes_counts() -> None:
    counts = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
    figure = charts.confusion_matrix(counts, CLASSES)
    axes = figure.axes[0]
    assert np.allclose(np.asarray(axes.images[0].get_array()), [[80, 20, 0], [0, 50, 50], [0, 0, 0]])
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "8"), ((1, 0), "2"), ((1, 1), "5"), ((2, 1), "5"),
    }  # fmt: skip
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted class", "Actual class")
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["cat", "dog"]
    assert figure.axes[1].get_ylabel() == "Share of the actual class (%)"


def test_confusion_matrix_of_many_classes_writes_no_counts() -> None:
    axes = charts.confusion_matrix(np.eye(100, dtype=int), [str(i) for i in range(100)]).axes[0]
    assert len(axes.texts) == 0
    assert len(axes.get_yticklabels()) == 100


def test_per_class_bars_have_the_length_of_the_scores_and_the_first_class_is_at_the_top() -> None:
    figure = charts.per_class_bars(scores((0.1, 0.4, 0.7), (0.2, 0.5, 0.8), (0.3, 0.6, 0.9)))
    (axes,) = figure.axes
    lengths = [[bar.get_width() for bar in container] for container in axes.containers]
    assert np.allclose(lengths, [[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    assert legend_of(figure) == ["Precision", "Recall", "F1"]
    assert axes.get_xlabel() == "Score (%)"
    assert axes.transData.transform((0, 0))[1] > axes.transData.transform((0, 2))[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "a class with a name t…"]


def test_calibration_curve_draws_accuracy_and_image_count_of_each_bin() -> None:
    upper, lower = charts.calibration_curve(bins(1, 1000)).axes
    diagonal, model = upper.get_lines()
    assert np.allclose(diagonal.get_xydata(), [[0, 0], [100, 100]])
    assert np.allclose(model.get_xydata(), [[60, 50], [90, 80]])
    bars = lower.patches
    assert [bar.get_y() + bar.get_height() for bar in bars] == [1, 1000]  # type: ignore[attr-defined]
    assert [bar.get_x() for bar in bars] == [50, 75]  # type: ignore[attr-defined]
    assert lower.get_ylim()[0] < 1  # a single image can be seen
    assert (upper.get_ylabel(), lower.get_ylabel(), lower.get_xlabel()) == (
        "Accuracy (%)", "Images (log)", "Confidence (%)",
    )  # fmt: skip


def test_calibration_curve_draws_the_curve_before_temperature_scaling() -> None:
    figure = charts.calibration_curve(bins(1, 1000), bins(300, 701)[1:])
    _, model, before = figure.axes[0].get_lines()
    assert np.allclose(model.get_xydata(), [[60, 50], [90, 80]])
    assert np.allclose(before.get_xydata(), [[90, 80]])
    assert legend_of(figure) == ["Perfect", "Calibrated", "Before"]


def luminance(color: str) -> float:
    """WCAG's relative luminance."""
    channels = np.array([*to_rgb(color)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", get_args(charts.Theme))
def test_colors_have_contrast_to_the_background(theme: charts.Theme) -> None:
    palette = charts.PALETTES[theme]
    assert min(contrast(text, palette.background) for text in (palette.text, palette.secondary)) >= 4.5
    assert min(contrast(color, palette.background) for color in palette.series) >= 3


@pytest.mark.parametrize("name", every_chart("light"))
def test_charts_have_the_background_of_their_theme_and_no_cut_text(name: str) -> None:
    for theme, palette in charts.PALETTES.items():
        drawn = pixels(every_chart(theme)[name])
        background = np.round(np.array([*to_rgb(palette.background)]) * 255)
        border = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
        assert np.array_equal(np.unique(border, axis=0), [background])


def test_the_heat_map_has_a_row_for_each_corruption_and_a_column_for_each_severity() -> None:
    (axes,) = charts.corruption_heat_map(CORRUPTIONS).axes
    assert np.allclose(np.asarray(axes.images[0].get_array()), [[10, 20, 30, 40, 50], [20, 30, 40, 50, 60]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fog", "zoom blur"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3", "4", "5"]
    assert [text.get_text() for text in axes.texts] == ["10", "20", "30", "40", "50", "20", "30", "40", "50", "60"]


def test_svg_is_small_well_formed_reproducible_and_escapes_names() -> None:
    names = ["<script>1</script>", "$x_$", "& so on"]

    def draw() -> bytes:
        return charts.to_svg(charts.per_class_bars(scores(*[(0.9, 0.8, 0.85)] * 3, names=names)))

    drawing = draw()
    texts = [element.text for element in ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert set(names) < set(texts)
    assert b"<script" not in drawing
    assert b"<image" not in drawing
    assert len(drawing) < 40_000
    assert draw() == drawing


def test_the_confusion_matrix_of_a_thousand_classes_is_not_too_large() -> None:
    names = [f"class {number}" for number in range(1000)]
    assert max(charts.confusion_matrix(np.eye(1000, dtype=int), names).get_size_inches()) <= 40
