import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vision import splits
from vision.arrays import Split
from vision.stage import UserError


@given(
    per_class=st.lists(st.integers(20, 60), min_size=2, max_size=6),
    val_fraction=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    limit=st.none() | st.integers(10, 100),
    seed=st.integers(0, 100),
)
def test_the_split_is_stratified_complete_and_disjoint(
    per_class: list[int], val_fraction: float, limit: int | None, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(per_class)), per_class)).astype(np.uint8)
    train, val = splits.split_rows(labels, val_fraction, limit, seed)
    available = len(labels) - round(val_fraction * len(labels))
    assume(limit is None or limit <= available)
    assert len(val) == len(labels) - available
    assert len(train) == (available if limit is None else limit)
    assert not set(train) & set(val)
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    for number, count in enumerate(per_class):
        assert abs((labels[val] == number).sum() - val_fraction * count) <= 1
        assert abs((labels[train] == number).sum() - len(train) * count / len(labels)) <= 2


def test_the_seed_decides_the_split() -> None:
    labels = np.repeat(np.arange(4), 50).astype(np.uint8)
    first, again, other = (splits.split_rows(labels, 0.1, None, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("labels", "fraction", "limit", "says"),
    [
        ([0, 1] * 50, 0.01, None, "preprocess.val_fraction: takes 1 images, fewer than there are classes"),
        ([0, 1] * 50, 0.1, 1, "preprocess.train_limit: takes 1 images, fewer than there are classes"),
        ([0] * 99 + [1], 0.5, None, "preprocess.val_fraction: leaves class 1 without a training image"),
    ],
)
def test_a_split_that_cannot_be_is_refused_by_name(
    labels: list[int], fraction: float, limit: int | None, says: str
) -> None:
    with pytest.raises(UserError) as error:
        splits.split_rows(np.array(labels), fraction, limit, 0)
    assert says in str(error.value)


def test_a_limit_just_below_what_there_is_is_kept() -> None:
    train, _ = splits.split_rows(np.arange(1000) % 10, 0.1, 899, 0)
    assert len(train) == 899


@given(count=st.integers(1, 30), channels=st.sampled_from([1, 3]), low=st.integers(0, 255), seed=st.integers(0, 100))
def test_pixel_statistics_agree_with_numpy(count: int, channels: int, low: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(low, 256, (count, 4, 5, channels), dtype=np.uint8)
    mean, std = splits.pixel_statistics(images)
    pixels = images.reshape(-1, channels) / 255
    assert mean == pytest.approx(pixels.mean(0))
    assert std == pytest.approx(np.maximum(pixels.std(0), 1 / 255))


def test_counts_by_class() -> None:
    def split(*labels: int) -> Split:
        return Split(np.zeros((len(labels), 2, 2, 3), np.uint8), np.array(labels, np.uint8))

    assert splits.counts({"train": split(0, 0, 1), "val": split(1), "test": split()}, ["cat", "dog"]) == {
        "classes": 2,
        "train": 3,
        "val": 1,
        "test": 0,
        "by_class": {"cat": {"train": 2, "val": 0, "test": 0}, "dog": {"train": 1, "val": 1, "test": 0}},
    }
