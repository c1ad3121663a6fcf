import numpy as np
import pytest

from vision.evaluation.prediction_sets import prediction_sets


def sample(count: int, seed: int, signal: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities float32 of ten classes that favor the label; by much if `signal` is high."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 10))
    labels = random.integers(0, 10, count)
    logits[np.arange(count), labels] += signal
    return labels, (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("signal", [0.5, 2.0, 5.0], ids=["poor", "good", "very good"])
@pytest.mark.parametrize("seed", range(3))
def test_sets_cover_90_percent_whatever_the_model(signal: float, seed: int) -> None:
    val_labels, val_probabilities = sample(5000, seed, signal)
    labels, probabilities = sample(10_000, 100 + seed, signal)
    sets = prediction_sets(val_labels, val_probabilities, probabilities)
    assert sets.shape == (10_000, 10)
    assert sets.dtype == bool
    assert 0.885 < sets[np.arange(10_000), labels].mean() < 0.915


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 9, 10, 11, 30])
def test_few_validation_images_and_missing_classes_give_larger_sets(count: int) -> None:
    labels, probabilities = sample(1000, 100, 2.0)
    sets = prediction_sets(*sample(count, 0, 2.0), probabilities)
    assert sets.all() == (count < 10)
    assert sets[np.arange(1000), labels].mean() > 0.85


def test_a_set_holds_the_most_probable_classes() -> None:
    sets = prediction_sets(*sample(500, 0, 1.0), sample(200, 1, 1.0)[1])
    probabilities = sample(200, 1, 1.0)[1]
    for row, chosen in zip(probabilities, sets, strict=True):
        assert not chosen.any() or row[chosen].min() >= row[~chosen].max(initial=0)
