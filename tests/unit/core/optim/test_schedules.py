"""Learning-rate schedules, against their formulas."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vision.core.config import ScheduleName
from vision.core.optim.schedules import build_schedule


def rates(name: ScheduleName, steps: int, warmup: float, lr: float = 2.0) -> list[float]:
    """The learning rate of each step, and the one after the last step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    schedule = build_schedule(optimizer, name, steps, warmup)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        if schedule is not None:
            schedule.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("linear", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]),
        ("step", [1, 1, 1, 0.1, 0.01, 0.01]),
    ],
)
def test_the_learning_rate_rises_to_its_peak_then_follows_the_schedule(
    name: ScheduleName, factors: list[float]
) -> None:
    assert rates(name, steps=6, warmup=0)[:-1] == pytest.approx([2 * factor for factor in factors])
    assert rates(name, steps=10, warmup=0.4)[:-1] == pytest.approx(
        [2 * factor for factor in (0.2, 0.4, 0.6, 0.8, *factors)]
    )


def test_a_constant_learning_rate_needs_no_schedule() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 2.0)
    assert build_schedule(optimizer, "constant", steps=10, warmup=0) is None
    assert build_schedule(optimizer, "constant", steps=10, warmup=0.04) is None, "less than half a step"
    assert optimizer.param_groups[0]["lr"] == 2.0


def test_an_unknown_schedule_is_refused() -> None:
    unknown: Any = "exponential"
    with pytest.raises(AssertionError, match="exponential"):
        rates(unknown, steps=6, warmup=0)


def test_one_cycle_rises_and_falls_along_a_cosine() -> None:
    found = rates("one_cycle", steps=100, warmup=0.3)
    peak = found.index(max(found))
    assert found[0] == pytest.approx(2 / 25)
    assert max(found) == pytest.approx(2, rel=1e-2)
    assert 28 <= peak <= 31
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-2] < 0.01


@given(st.sampled_from(get_args(ScheduleName)), st.integers(1, 300), st.floats(0, 0.99999))
def test_every_step_of_every_schedule_has_a_positive_learning_rate(
    name: ScheduleName, steps: int, warmup: float
) -> None:
    *used, last = rates(name, steps, warmup)
    assert all(0 < rate <= 2 * (1 + 1e-12) for rate in used)
    if name in ("linear", "cosine"):
        assert last == pytest.approx(0, abs=1e-12)
        assert max(used) == pytest.approx(2)
