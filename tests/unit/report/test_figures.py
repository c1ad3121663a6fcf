"""Each figure draws the values that it is given, and says what they are."""

import xml.etree.ElementTree as ET
from typing import get_args

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from vision.report import figures

CLASSES = ["cat", "dog", "a class with a name that is far too long"]
EDGES = [(0.5, 0.75), (0.75, 1.0)]


def pixels(figure: Figure) -> np.ndarray:
    """The figure as it is drawn, uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def every_chart(theme: figures.Theme) -> dict[str, Figure]:
    return {
        "loss": figures.loss_curves([2.0, 1.0], [2.1, 1.2], best_epoch=2, theme=theme),
        "accuracy": figures.accuracy_curves([0.3, 0.6], [0.2, 0.5], best_epoch=2, theme=theme),
        "confusion_matrix": figures.confusion_matrix(np.diag([3, 4, 5]), CLASSES, theme=theme),
        "per_class": figures.per_class_bars(CLASSES, [0.9] * 3, [0.8] * 3, [0.85] * 3, theme=theme),
        "calibration": figures.calibration_curve(EDGES, [10, 1000], [0.6, 0.9], [0.5, 0.8], theme=theme),
    }


def legend_of(figure: Figure) -> list[str]:
    legends = [child for child in figure.get_children() if isinstance(child, Legend)]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_loss_curves_draw_both_splits_by_epoch() -> None:
    figure = figures.loss_curves([2.0, 1.0, 0.5], [2.1, 1.2, 0.9], best_epoch=2)
    (axes,) = figure.axes
    assert (axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()) == ("Loss", "Epoch", "Cross-entropy (nats)")
    train, val, kept = axes.get_lines()
    assert np.array_equal(train.get_xydata(), [[1, 2.0], [2, 1.0], [3, 0.5]])
    assert np.array_equal(val.get_xydata(), [[1, 2.1], [2, 1.2], [3, 0.9]])
    assert list(np.unique(kept.get_xdata())) == [2]
    assert legend_of(figure) == ["Training", "Validation", "Kept: epoch 2"]
    assert (train.get_marker(), train.get_linestyle()) != (val.get_marker(), val.get_linestyle())


def test_accuracy_is_drawn_in_percent() -> None:
    (axes,) = figures.accuracy_curves([0.3, 0.6], [0.2, 0.5]).axes
    assert axes.get_ylabel() == "Accuracy (%)"
    for line, percent in zip(axes.get_lines(), ([30, 60], [20, 50]), strict=True):
        assert np.allclose(line.get_xydata(), np.transpose([[1, 2], percent]))


def test_curves_without_validation_show_training_alone() -> None:
    figure = figures.loss_curves([2.0, 1.0], None)
    assert legend_of(figure) == ["Training"]


def test_one_epoch_is_a_visible_point_with_a_whole_number_below() -> None:
    figure = figures.loss_curves([2.0], None)
    (axes,) = figure.axes
    (line,) = axes.get_lines()
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    assert line.get_marker() == "o"
    assert line.get_markersize() > 0
    assert low < 1 < high
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_confusion_matrix_colours_shares_and_writes_counts() -> None:
    counts = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
    figure = figures.confusion_matrix(counts, CLASSES)
    axes = figure.axes[0]
    assert np.allclose(np.asarray(axes.images[0].get_array()), [[80, 20, 0], [0, 50, 50], [0, 0, 0]])
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "8"), ((1, 0), "2"), ((1, 1), "5"), ((2, 1), "5"),
    }  # fmt: skip
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted class", "Actual class")
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["cat", "dog"]
    assert figure.axes[1].get_ylabel() == "Share of the actual class (%)"


def test_confusion_matrix_of_many_classes_writes_no_counts() -> None:
    axes = figures.confusion_matrix(np.eye(100, dtype=int), [str(i) for i in range(100)]).axes[0]
    assert len(axes.texts) == 0
    assert len(axes.get_yticklabels()) == 100


def test_per_class_bars_are_as_long_as_the_scores_and_the_first_class_is_on_top() -> None:
    figure = figures.per_class_bars(CLASSES, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9])
    (axes,) = figure.axes
    lengths = [[bar.get_width() for bar in container] for container in axes.containers]
    assert np.allclose(lengths, [[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    assert legend_of(figure) == ["Precision", "Recall", "F1"]
    assert axes.get_xlabel() == "Score (%)"
    assert axes.transData.transform((0, 0))[1] > axes.transData.transform((0, 2))[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "a class with a name t…"]


def test_calibration_curve_draws_the_bins_and_how_many_images_they_hold() -> None:
    upper, lower = figures.calibration_curve(EDGES, [1, 1000], [0.6, 0.9], [0.5, 0.8]).axes
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


def luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    channels = np.array([*to_rgb(colour)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", get_args(figures.Theme))
def test_colours_stand_out_from_the_ground(theme: figures.Theme) -> None:
    palette = figures.PALETTES[theme]
    assert min(contrast(text, palette.ground) for text in (palette.ink, palette.muted)) >= 4.5
    assert min(contrast(colour, palette.ground) for colour in palette.colours) >= 3


@pytest.mark.parametrize("name", every_chart("light"))
def test_charts_have_a_ground_of_their_theme_and_text_that_is_not_cut(name: str) -> None:
    for theme, palette in figures.PALETTES.items():
        drawn = pixels(every_chart(theme)[name])
        ground = np.round(np.array([*to_rgb(palette.ground)]) * 255)
        border = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
        assert np.array_equal(np.unique(border, axis=0), [ground])


@pytest.mark.parametrize(
    ("shape", "side"),
    [((32, 32, 3), (64, 64)), ((28, 28, 1), (56, 56)), ((20, 50, 3), (60, 150)), ((300, 200, 3), (75, 50))],
)
def test_sample_grid_shows_images_of_each_class_in_whole_pixels(
    shape: tuple[int, int, int], side: tuple[int, int]
) -> None:
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 3, 0])
    tones = 50 * labels + 40
    images = np.broadcast_to(tones[:, None, None, None], (len(labels), *shape)).astype(np.uint8)
    drawn = pixels(figures.sample_grid(images, labels, ["a", "b", "none of these", "d"], per_class=4))
    tops = []
    for label, count in ((0, 4), (1, 3), (3, 1)):
        places = np.argwhere((drawn == 50 * label + 40).all(axis=-1))
        rows, lengths = np.unique(places[:, 0], return_counts=True)
        whole = rows[lengths >= count * side[1]]  # elsewhere the tone may be part of a letter
        assert len(whole) == side[0]
        assert lengths[np.isin(rows, whole)].tolist() == [count * side[1]] * side[0]
        tops.append(whole[0])
    assert tops == sorted(tops)


def test_sample_grid_names_the_classes_and_takes_images_from_the_whole_split() -> None:
    images = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    (axes,) = figures.sample_grid(images, np.zeros(100, np.uint8), ["$cat_1"], per_class=3).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$cat_1"]
    mosaic = np.asarray(axes.images[0].get_array())
    assert [mosaic[0, column, 0] for column in (0, 9, 18)] == [0, 50, 99]


def test_svg_is_small_wellformed_the_same_each_time_and_escapes_names() -> None:
    names = ["<script>1</script>", "$x_$", "& so on"]

    def draw() -> bytes:
        return figures.to_svg(figures.per_class_bars(names, [0.9] * 3, [0.8] * 3, [0.85] * 3))

    drawing = draw()
    texts = [element.text for element in ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert set(names) < set(texts)
    assert b"<script" not in drawing
    assert b"<image" not in drawing
    assert len(drawing) < 40_000
    assert draw() == drawing


@pytest.mark.parametrize(
    ("total", "wanted", "expected"), [(5, 2, [0, 4]), (3, 9, [0, 1, 2]), (9, 3, [0, 4, 8]), (0, 4, []), (7, 1, [0])]
)
def test_evenly(total: int, wanted: int, expected: list[int]) -> None:
    assert figures.evenly(total, wanted).tolist() == expected


def test_a_thousand_classes_fit_in_pictures() -> None:
    names = [f"class {number}" for number in range(1000)]
    labels = np.arange(1000)
    grid = figures.sample_grid(np.zeros((1000, 96, 96, 3), np.uint8), labels, names, per_class=1)
    (axes,) = grid.axes
    assert axes.get_title("left") == "Sample images of 200 of 1,000 classes"
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert len(shown) == 200
    assert (shown[0], shown[-1]) == ("class 0", "class 999")
    matrix = figures.confusion_matrix(np.eye(1000, dtype=int), names)
    assert max(matrix.get_size_inches()) <= 40
