import data_audit
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision.audit import duplicates
from vision.audit.duplicates import Pairs
from vision.audit.neighbors import Neighbors


def find(images: np.ndarray) -> Pairs:
    """The near-duplicates, with candidates by thumbnails alone."""
    pixels = torch.from_numpy(images)
    nothing = Neighbors(torch.zeros(len(images), 0, dtype=torch.int64), torch.zeros(len(images), 0))
    pairs, mirrored = duplicates.find_candidates(nothing, pixels)
    return duplicates.select_pairs(pairs, duplicates.compare_pixels(pixels, pairs, mirrored))


@pytest.mark.parametrize("change", data_audit.KINDS, ids=lambda function: function.__name__)
def test_copies_are_found_and_nothing_else(scenes: np.ndarray, change: data_audit.Change) -> None:
    random = np.random.default_rng(0)
    copies = [change(image, random) for image in scenes[:50]]
    pairs = find(np.concatenate([scenes, copies]))
    assert {*zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)} == {(i, 300 + i) for i in range(50)}
    assert (np.diff(pairs.correlation) <= 0).all()
    assert pairs.correlation.min() >= duplicates.MIN_CORRELATION


def test_images_of_another_size_are_compared(scenes: np.ndarray) -> None:
    large = scenes.repeat(3, 1).repeat(2, 2)
    copy = np.roll(large[7], 3, axis=0)[:, ::-1]  # 1 pixel of 32
    pairs = find(np.concatenate([large, copy[None]]))
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([7], [300])


def test_the_correlation_is_that_of_numpy(scenes: np.ndarray) -> None:
    first, second = scenes[:20], scenes[20:40]
    one, other = (torch.from_numpy(part).permute(0, 3, 1, 2).float() for part in (first, second))
    found = duplicates.shifted_correlation(one, other, 3)
    for image, moved, correlation in zip(first.astype(float), second.astype(float), found.tolist(), strict=True):
        center = image[3:29, 3:29] - image[3:29, 3:29].mean((0, 1))
        windows = [moved[y : y + 26, x : x + 26] for y in range(7) for x in range(7)]
        windows = [window - window.mean((0, 1)) for window in windows]
        expected = max((center * window).sum() / np.sqrt((center**2).sum() * (window**2).sum()) for window in windows)
        assert correlation == pytest.approx(expected, abs=1e-5)


def test_a_shift_of_up_to_three_pixels_does_not_matter() -> None:
    large = 255 * torch.rand(1, 3, 38, 38)
    center = large[..., 3:35, 3:35]
    for y in range(7):
        for x in range(7):
            assert duplicates.shifted_correlation(center, large[..., y : y + 32, x : x + 32], 3).item() > 0.9999


def test_blank_images_are_like_nothing() -> None:
    blank = torch.full((2, 3, 32, 32), 7.0)
    noise = torch.rand(2, 3, 32, 32) * 255
    for first, second in ((blank, blank), (blank, noise), (noise, blank)):
        assert duplicates.shifted_correlation(first, second, 3).tolist() == [0, 0]


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_groups_are_connected_by_pairs(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, drawn = case
    chosen = [(min(pair), max(pair)) for pair in drawn if pair[0] != pair[1]]
    first, second = np.array(chosen, dtype=np.int64).reshape(-1, 2).T
    groups = duplicates.find_groups(Pairs(first, second, np.ones(len(first), np.float32)), count)
    expected = {index: {index} for index in range(count)}
    for one, other in chosen:
        merged = expected[one] | expected[other]
        expected |= dict.fromkeys(merged, merged)
    for index in range(count):
        members = set(np.flatnonzero(groups == groups[index]).tolist()) if groups[index] else {index}
        assert members == expected[index]
    numbers = [number for number in groups.tolist() if number]
    assert list(dict.fromkeys(numbers)) == list(range(1, len(set(numbers)) + 1))


def test_images_with_other_details_are_no_near_duplicates(scenes: np.ndarray) -> None:
    """Such as two ships below the same sky."""
    sky = np.linspace(200, 20, 32)[:, None, None]
    ships = (sky + 0.2 * scenes[:20].astype(float)).clip(0, 255).astype(np.uint8)
    pixels = torch.from_numpy(ships).permute(0, 3, 1, 2).float()
    assert duplicates.shifted_correlation(pixels[:10], pixels[10:], 3).min() > duplicates.MIN_CORRELATION
    assert len(find(ships).first) == 0
    assert len(find(np.concatenate([ships, ships])).first) == 20
