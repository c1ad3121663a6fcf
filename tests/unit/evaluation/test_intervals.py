import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.evaluation.intervals import wilson


@given(trials=st.integers(1, 10_000), share=st.floats(0, 1))
def test_the_ends_are_the_shares_that_a_score_test_just_accepts(trials: int, share: float) -> None:
    successes = round(share * trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            distance = abs(successes / trials - end) / np.sqrt(end * (1 - end) / trials)
            assert distance == pytest.approx(1.959964, rel=1e-4)


def test_without_trials_nothing_is_known() -> None:
    assert wilson(0, 0) == (0, 1)


def test_about_95_of_100_intervals_contain_the_true_share() -> None:
    successes = np.random.default_rng(0).binomial(10_000, 0.92, 2000)
    inside = [low <= 0.92 <= high for low, high in (wilson(int(count), 10_000) for count in successes)]
    assert 0.935 < np.mean(inside) < 0.965
