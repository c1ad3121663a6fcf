import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from vision.evaluation.significance import compare_models, compare_seeds


def correct(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_first, only_second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@given(both=st.integers(0, 200), only_first=st.integers(0, 30), only_second=st.integers(0, 30))
def test_two_models_are_compared_by_the_images_of_which_one_is_wrong(
    both: int, only_first: int, only_second: int
) -> None:
    found = compare_models(*correct(both, only_first, only_second, 5))
    total = both + only_first + only_second + 5
    assert found.value == pytest.approx((only_second - only_first) / total)
    assert found.low <= (only_second - only_first) / (total + 2) <= found.high
    # A coin that is thrown for each image on which only one is correct: twice the tail, at most 1.
    expected = min(1, 2 * binom.cdf(min(only_first, only_second), only_first + only_second, 0.5))
    assert found.p_value == pytest.approx(expected)
    swapped = compare_models(*correct(both, only_second, only_first, 5))
    assert (swapped.low, swapped.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_equal_models_leave_a_margin() -> None:
    found = compare_models(*correct(100, 0, 0, 0))
    assert found.p_value == 1
    assert found.low < 0 < found.high
    assert not found.is_significant


def test_seeds_are_compared_by_a_paired_t_test() -> None:
    found = compare_seeds([0.01, 0.02, 0.03])
    # Mean 0.02, standard error 0.01 / sqrt(3), t quantile 4.303 with two degrees of freedom.
    assert found.value == pytest.approx(0.02)
    assert found.low == pytest.approx(0.02 - 4.30265 * 0.01 / 3**0.5, abs=1e-6)
    assert found.high == pytest.approx(0.02 + 4.30265 * 0.01 / 3**0.5, abs=1e-6)
    assert found.p_value == pytest.approx(0.0742, abs=1e-4)


def test_copies_of_one_experiment_do_not_differ() -> None:
    found = compare_seeds([0.0, 0.0])
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert compare_seeds([0.1, 0.1]).is_significant


@pytest.mark.parametrize("seeds", [3, 5])
def test_without_a_difference_there_are_3_to_7_percent_false_alarms(seeds: int) -> None:
    random = np.random.default_rng(0)
    alarms = [compare_seeds(random.normal(0, 0.003, seeds)).is_significant for _ in range(2000)]  # type: ignore[arg-type]
    assert 0.03 < np.mean(alarms) < 0.07
