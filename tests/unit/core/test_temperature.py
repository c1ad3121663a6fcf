import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from vision.core.temperature import fit_temperature


def sample(count: int, classes: int, seed: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from softmax(logits / scale): the best temperature is about `scale`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return scale * logits, labels


@given(classes=st.integers(2, 12), scale=st.floats(0.2, 5), seed=st.integers(0, 1000))
def test_no_other_temperature_has_a_lower_cross_entropy(classes: int, scale: float, seed: int) -> None:
    logits, labels = sample(300, classes, seed, scale)
    found = fit_temperature(logits, labels)
    best = cross_entropy(logits.double() / found, labels, label_smoothing=1 / 301)
    for factor in (0.9, 0.999, 1.001, 1.1):
        other = min(20.0, max(0.05, factor * found))
        assert cross_entropy(logits.double() / other, labels, label_smoothing=1 / 301) >= best - 1e-12


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_scale_of_the_logits(scale: float) -> None:
    logits, labels = sample(50_000, 10, 0, scale)
    assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.03)


@pytest.mark.parametrize("count", [10, 1000])
def test_images_that_are_all_correct_give_a_probability_as_high_as_their_number_allows(count: int) -> None:
    labels = torch.arange(count) % 4
    logits = 5 * torch.eye(4)[labels]
    probability = (logits / fit_temperature(logits, labels)).softmax(1).amax(1)
    # One of count + 1 images has a random label, of which three in four are wrong.
    assert probability.tolist() == pytest.approx([1 - 0.75 / (count + 1)] * count, abs=1e-5)


def test_it_stays_within_its_limits_and_finite() -> None:
    right, labels = 5 * torch.eye(4), torch.arange(4)
    assert fit_temperature(1e-3 * right, labels) == pytest.approx(0.05)
    assert fit_temperature(-right, labels) == pytest.approx(20)
    assert math.isfinite(fit_temperature(torch.zeros(4, 4), labels))
