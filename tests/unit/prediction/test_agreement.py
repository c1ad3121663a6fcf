import numpy as np
import pytest

from vision.prediction.agreement import Agreement, measure_accuracy_drop, measure_agreement

IMAGES = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1)


def compare(first: list[list[float]], second: list[list[float]]) -> Agreement:
    """Compare two networks that return these probabilities for the images 0, 1, 2, ..."""
    expected, actual = np.array(first, np.float32), np.array(second, np.float32)
    images = IMAGES[: len(first)]
    return measure_agreement(
        lambda batch: expected[batch.flatten()], lambda batch: actual[batch.flatten()], images, [1, len(first) - 1]
    )


def test_the_largest_difference_of_all_batches_counts() -> None:
    agreement = compare([[0.2, 0.8], [0.3, 0.7], [0.5, 0.5]], [[0.2, 0.8], [0.3, 0.7], [0.53, 0.47]])
    assert agreement.max_difference == pytest.approx(0.03)
    assert agreement.images == 3
    assert not agreement.is_close


def test_small_differences_are_accepted() -> None:
    assert compare([[0.2, 0.8], [0.3, 0.7]], [[0.20005, 0.79995], [0.3, 0.7]]).is_close
    assert not compare([[0.2, 0.8], [0.3, 0.7]], [[0.20015, 0.79985], [0.3, 0.7]]).is_close


def test_a_change_of_class_counts_unless_the_classes_are_nearly_equal() -> None:
    assert compare([[0.4999, 0.5001], [0, 1]], [[0.5001, 0.4999], [0, 1]]).class_changes == 0
    changed = compare([[0.499, 0.501], [0, 1]], [[0.501, 0.499], [0, 1]])
    assert changed.class_changes == 1
    assert "1 change of class" in str(changed)


def test_nan_is_no_agreement() -> None:
    agreement = compare([[0.2, 0.8], [0.3, 0.7], [0.1, 0.9]], [[0.2, 0.8], [np.nan, np.nan], [0.1, 0.9]])
    assert np.isnan(agreement.max_difference)
    assert not agreement.is_close


def probabilities(right: list[bool]) -> np.ndarray:
    return np.eye(2)[[0 if correct else 1 for correct in right]]


def test_the_interval_is_that_of_agresti_and_min() -> None:
    first = [True] * 10 + [False] * 4 + [True] * 86
    second = [False] * 10 + [True] * 4 + [True] * 86
    drop = measure_accuracy_drop(probabilities(first), probabilities(second), np.zeros(100))
    assert (drop.expected, drop.actual) == (0.96, 0.9)
    # 10.5 and 4.5 of 102: a difference of 6 / 102, and its standard error sqrt(15 - 36 / 102) / 102.
    assert drop.upper == pytest.approx(0.05882 + 1.96 * 0.03752, abs=1e-4)


def test_few_images_prove_nothing() -> None:
    uppers = []
    for count in (100, 1000):
        table = probabilities([True] * count)
        uppers.append(measure_accuracy_drop(table, table, np.zeros(count)).upper)
    assert uppers[0] > 0.005 > uppers[1] > 0
