import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.evaluation import scores


def predictions(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes)) + 2 * np.eye(classes)[labels] * random.random((count, 1))
    return labels, (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


@given(classes=st.integers(2, 12), count=st.integers(1, 200), seed=st.integers(0, 1000))
def test_the_summary_agrees_with_plain_numpy(classes: int, count: int, seed: int) -> None:
    labels, probabilities = predictions(count, classes, seed)
    predicted = probabilities.argmax(1)
    summary = scores.summarize(labels, probabilities)
    assert summary["accuracy"] == pytest.approx((predicted == labels).mean())
    wide = probabilities.astype(np.float64)
    assert summary["cross_entropy"] == pytest.approx(
        -np.log(wide[np.arange(count), labels] / wide.sum(1)).mean(), rel=1e-6
    )
    rank = (probabilities > probabilities[np.arange(count), labels][:, None]).sum(1)
    assert summary["top5_accuracy"] == pytest.approx((rank < 5).mean())
    f1 = []
    for number in range(classes):
        right = ((predicted == number) & (labels == number)).sum()
        wrong = ((predicted == number) ^ (labels == number)).sum()
        f1.append(2 * right / (2 * right + wrong) if right else 0.0)
    assert summary["f1_macro"] == pytest.approx(np.mean(f1))


def test_rows_of_the_confusion_matrix_are_actual_classes() -> None:
    matrix = scores.confusion(np.array([0, 0, 1]), np.array([2, 0, 2]), classes=3)
    assert matrix.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]


def test_per_class_scores() -> None:
    rows = scores.per_class(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ["cat", "dog", "never"])
    assert all(row.recall_low <= row.recall <= row.recall_high for row in rows)
    assert (rows[2].recall_low, rows[2].recall_high) == (0, 1), "nothing is known"
    assert [(row.name, row.precision, row.recall, row.f1, row.images) for row in rows] == [
        ("cat", 1.0, 0.5, pytest.approx(2 / 3), 2),
        ("dog", pytest.approx(2 / 3), 1.0, pytest.approx(0.8), 2),
        ("never", 0.0, 0.0, 0.0, 0),
    ]


def test_calibration_bins_and_error() -> None:
    probabilities = np.array([[0.95, 0.05], [0.97, 0.03], [0.3, 0.7], [0.34, 0.66]])
    rows = scores.calibration(np.array([0, 1, 1, 1]), probabilities, bins=10)
    edges = [(round(row.confidence_from, 9), round(row.confidence_to, 9)) for row in rows]
    assert edges == [(0.6, 0.7), (0.9, 1.0)]
    assert [row.images for row in rows] == [2, 2]
    assert [(row.confidence, row.accuracy) for row in rows] == [(pytest.approx(0.68), 1.0), (pytest.approx(0.96), 0.5)]
    assert scores.calibration_error(rows) == pytest.approx((2 * 0.32 + 2 * 0.46) / 4)


@given(classes=st.integers(2, 12), count=st.integers(1, 200), seed=st.integers(0, 1000))
def test_calibration_counts_every_image_once(classes: int, count: int, seed: int) -> None:
    labels, probabilities = predictions(count, classes, seed)
    rows = scores.calibration(labels, probabilities)
    assert sum(row.images for row in rows) == count
    assert all(row.confidence_from - 1e-9 <= row.confidence <= row.confidence_to + 1e-9 for row in rows)
    accuracy = sum(row.images * row.accuracy for row in rows) / count
    assert accuracy == pytest.approx((probabilities.argmax(1) == labels).mean())


def test_a_perfect_and_confident_model() -> None:
    labels = np.arange(6)
    summary = scores.summarize(labels, np.eye(6))
    assert summary["accuracy"] == summary["f1_macro"] == summary["top5_accuracy"] == 1
    assert summary["calibration_error"] == 0
    assert summary["cross_entropy"] == pytest.approx(0, abs=1e-9)
