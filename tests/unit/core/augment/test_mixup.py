"""MixUp and CutMix: against torchvision pair by pair, and which weights and boxes are drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from vision.core.augment.mixup import MixupCutmix, cutmix, mixup, sample_mix_weights


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(images: Tensor, i: int) -> Tensor:
    """Images i - 1 and i, [2, C, H, W], of which torchvision mixes the second with the first."""
    return torch.stack((images[i - 1], images[i])).permute(0, 3, 1, 2)


TWO = {"batch_size": 2, "labels": None}
sizes = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))


@given(shape=sizes, seed=st.integers(0, 1000))
def test_mixup_agrees_with_torchvision_pair_by_pair(shape: tuple[int, int, int, int], seed: int) -> None:
    images = noise(*shape, seed=seed)
    weights = torch.rand(len(images), generator=seeded(seed))
    out = mixup(images, weights)
    for i in range(len(images)):
        expected = v2.MixUp(num_classes=2).transform(pair(images, i).float(), {"lam": float(weights[i]), **TWO})[1]
        assert torch.allclose(out[i], expected.permute(1, 2, 0), atol=1e-3)
    assert torch.equal(images, noise(*shape, seed=seed)), "the argument is unchanged"


@given(shape=sizes, seed=st.integers(0, 1000), dtype=st.sampled_from([torch.uint8, torch.float32]))
def test_cutmix_agrees_with_torchvision_pair_by_pair(
    shape: tuple[int, int, int, int], seed: int, dtype: torch.dtype
) -> None:
    images = noise(*shape, seed=seed).to(dtype)
    generator = seeded(seed)
    top, bottom = torch.randint(shape[1] + 1, (2, shape[0]), generator=generator).sort(0).values
    left, right = torch.randint(shape[2] + 1, (2, shape[0]), generator=generator).sort(0).values
    out = cutmix(images, top, bottom, left, right)
    assert out.dtype == dtype
    for i in range(len(images)):
        box = [int(edge[i]) for edge in (left, top, right, bottom)]
        expected = v2.CutMix(num_classes=2).transform(pair(images, i), {"box": box, **TWO})[1]
        assert torch.equal(out[i], expected.permute(1, 2, 0))
    moved = images.transpose(1, 2).contiguous().transpose(1, 2)
    again = cutmix(moved.contiguous(), top, bottom, left, right)
    assert torch.equal(cutmix(moved, top, bottom, left, right), again), "independent of the memory format"


BLACK_AND_WHITE = (torch.arange(4000) % 2 * 255).to(torch.uint8)[:, None, None, None].expand(-1, 20, 12, 1).contiguous()
LABELS = torch.arange(4000) % 2
"""Each image is mixed with one of the other color, so the mean color shows the weight."""


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(1.0, 0.0), (0.0, 1.0), (0.2, 0.0), (0.0, 0.2)])
def test_weights_are_the_visible_fractions_and_other_labels_those_of_the_other_image(
    mixup_alpha: float, cutmix_alpha: float
) -> None:
    images, other_labels, weights = MixupCutmix(mixup_alpha, cutmix_alpha, seeded(0))(BLACK_AND_WHITE, LABELS)
    assert images.dtype == (torch.float32 if mixup_alpha else torch.uint8)
    assert other_labels is not None
    assert weights is not None
    assert torch.equal(other_labels, 1 - LABELS)
    white = images.float().mean((1, 2, 3)) / 255
    assert torch.allclose(weights, torch.where(LABELS == 1, white, 1 - white), atol=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_weights_have_the_beta_distribution_and_are_at_least_one_half(alpha: float) -> None:
    beta = torch.distributions.Beta(alpha, alpha).sample((100_000,))
    expected = torch.maximum(beta, 1 - beta)
    weights = MixupCutmix(alpha, 0.0, seeded(0))(BLACK_AND_WHITE, LABELS).weights
    assert weights is not None
    assert 0.5 <= weights.min() <= weights.max() <= 1
    assert weights.mean().item() == pytest.approx(expected.mean().item(), abs=0.01)
    assert weights.std().item() == pytest.approx(expected.std().item(), abs=0.01)
    # The area of a box is 1 - weight, but it is cut off at the edges, and its sides are rounded to pixels.
    weights = MixupCutmix(0.0, alpha, seeded(0))(BLACK_AND_WHITE, LABELS).weights
    assert weights is not None
    assert 0.5 <= weights.min() <= weights.max() <= 1
    assert expected.mean() < weights.mean() < 1


def test_boxes_cover_the_whole_image() -> None:
    images, _, _ = MixupCutmix(0.0, 1.0, seeded(0))(BLACK_AND_WHITE, LABELS)
    replaced = ((images > 127) != (LABELS == 1)[:, None, None, None]).float().mean(0)[..., 0]
    middle = replaced[7:13, 4:8].mean().item()
    assert replaced.min() > 0.03
    assert torch.allclose(replaced, replaced.flip(0), atol=0.1)
    assert torch.allclose(replaced, replaced.flip(1), atol=0.1)
    assert replaced.max().item() == pytest.approx(middle, abs=0.05)


def test_with_both_on_each_batch_gets_one_of_the_two() -> None:
    mix = MixupCutmix(1.0, 1.0, seeded(0))
    floats = [mix(BLACK_AND_WHITE[:8], LABELS[:8]).images.is_floating_point() for _ in range(200)]
    assert 70 < sum(floats) < 130


def test_the_seed_determines_the_result() -> None:
    first, again, other = (MixupCutmix(0.0, 1.0, seeded(seed))(BLACK_AND_WHITE, LABELS).images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_alpha_zero_leaves_images_unchanged_and_draws_no_random_numbers() -> None:
    generator = seeded(0)
    before = generator.get_state()
    images, other_labels, weights = MixupCutmix(0.0, 0.0, generator)(BLACK_AND_WHITE, LABELS)
    assert images is BLACK_AND_WHITE
    assert other_labels is None
    assert weights is None
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_sampled_weights_are_those_of_torch_distributions_and_leave_the_global_generator_alone(alpha: float) -> None:
    torch.manual_seed(7)
    expected = torch.distributions.Dirichlet(torch.full((50, 2), alpha)).sample().amax(1)
    state = torch.get_rng_state()
    generator = seeded(7)
    assert torch.equal(sample_mix_weights(alpha, 50, generator), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(sample_mix_weights(alpha, 50, generator), expected), "the generator advances"
