import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vision.datasets.sample_grid import sample_grid
from vision.storage.arrays import Split


def pixels(figure: Figure) -> np.ndarray:
    """Draw the figure, uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


@pytest.mark.parametrize(
    ("shape", "side"),
    [((32, 32, 3), (64, 64)), ((28, 28, 1), (56, 56)), ((20, 50, 3), (60, 150)), ((300, 200, 3), (75, 50))],
)
def test_images_of_each_class_are_shown_in_whole_pixels(shape: tuple[int, int, int], side: tuple[int, int]) -> None:
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 3, 0])
    tones = 50 * labels + 40
    images = np.broadcast_to(tones[:, None, None, None], (len(labels), *shape)).astype(np.uint8)
    drawn = pixels(sample_grid(Split(images, labels), ["a", "b", "no image", "d"], per_class=4))
    tops = []
    for label, count in ((0, 4), (1, 3), (3, 1)):
        positions = np.argwhere((drawn == 50 * label + 40).all(axis=-1))
        rows, lengths = np.unique(positions[:, 0], return_counts=True)
        whole = rows[lengths >= count * side[1]]  # other rows may have the tone in a letter
        assert len(whole) == side[0]
        assert lengths[np.isin(rows, whole)].tolist() == [count * side[1]] * side[0]
        tops.append(whole[0])
    assert tops == sorted(tops)


def test_classes_are_named_and_images_come_from_the_whole_split() -> None:
    images = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    (axes,) = sample_grid(Split(images, np.zeros(100, np.uint8)), ["$cat_1"], per_class=3).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$cat_1"]
    mosaic = np.asarray(axes.images[0].get_array())
    assert [mosaic[0, column, 0] for column in (0, 9, 18)] == [0, 50, 99]


def test_of_a_thousand_classes_two_hundred_are_shown() -> None:
    split = Split(np.zeros((1000, 96, 96, 3), np.uint8), np.arange(1000))
    (axes,) = sample_grid(split, [f"class {number}" for number in range(1000)], per_class=1).axes
    assert axes.get_title("left") == "Sample images of 200 of 1,000 classes"
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert len(names) == 200
    assert (names[0], names[-1]) == ("class 0", "class 999")
