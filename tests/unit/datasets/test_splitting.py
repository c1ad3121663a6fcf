from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vision.datasets import splitting
from vision.pipeline.errors import UserError
from vision.storage.arrays import Split

CLASSES = ["cat", "dog", *map(str, range(8))]


def split(labels: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return splitting.split_indices(labels, CLASSES, splitting.SplitConfig(**options))


@given(
    per_class=st.lists(st.integers(20, 60), min_size=2, max_size=6),
    test_fraction=st.sampled_from([0.0, 0.2, 0.5]),
    val_fraction=st.sampled_from([0.0, 0.2, 0.5]),
    limit=st.none() | st.integers(10, 100),
    seed=st.integers(0, 100),
)
def test_the_split_is_stratified_complete_and_disjoint(
    per_class: list[int], test_fraction: float, val_fraction: float, limit: int | None, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(per_class)), per_class)).astype(np.uint8)
    tested = round(test_fraction * len(labels))
    validated = round(val_fraction * (len(labels) - tested))
    available = len(labels) - tested - validated
    assume(limit is None or limit <= available)
    train, val, test = split(
        labels, test_fraction=test_fraction, val_fraction=val_fraction, train_limit=limit, seed=seed
    )
    assert (len(test), len(val)) == (tested, validated)
    assert len(train) == (available if limit is None else limit)
    assert len({*train, *val, *test}) == len(train) + len(val) + len(test)
    for rows in (train, val, test):
        assert (np.diff(rows) > 0).all()
        for number, count in enumerate(per_class):
            assert abs((labels[rows] == number).sum() - len(rows) * count / len(labels)) <= 2


@given(
    per_class=st.lists(st.integers(20, 60), min_size=2, max_size=4),
    test_fraction=st.sampled_from([0.0, 0.2]),
    folds=st.integers(2, 6),
    seed=st.integers(0, 100),
)
def test_each_image_validates_in_one_fold(per_class: list[int], test_fraction: float, folds: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(per_class)), per_class)).astype(np.uint8)
    options: dict[str, Any] = {"test_fraction": test_fraction, "folds": folds, "seed": seed}
    _, _, test = split(labels, test_fraction=test_fraction, seed=seed)
    validated: list[int] = []
    for fold in range(folds):
        train, val, held_out = split(labels, fold=fold, **options)
        np.testing.assert_array_equal(held_out, test)
        assert sorted([*train, *val, *test]) == list(range(len(labels)))
        assert (np.diff(val) > 0).all()
        for number in range(len(per_class)):
            share = (labels[np.setdiff1d(np.arange(len(labels)), test)] == number).sum() / folds
            assert abs((labels[val] == number).sum() - share) < 1
        validated += val.tolist()
    assert sorted([*validated, *test]) == list(range(len(labels)))


@given(
    pairs=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=30),
    options=st.sampled_from([{"val_fraction": 0.2}, {"folds": 4, "fold": 1}, {"val_fraction": 0.3, "train_limit": 40}]),
    test_fraction=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 100),
)
def test_a_group_is_never_separated(
    pairs: list[tuple[int, int]], options: dict[str, Any], test_fraction: float, seed: int
) -> None:
    """Only train_limit leaves out some images of a group."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(4), 40)).astype(np.uint8)
    groups = np.arange(160)
    for first, second in pairs:
        groups[groups == groups[second]] = groups[first]
    config = splitting.SplitConfig(test_fraction=test_fraction, seed=seed, **options)
    parts = splitting.split_indices(labels, CLASSES, config, random.permutation(160)[groups])
    for part, other in ((0, 1), (0, 2), (1, 2)):
        assert not set(groups[parts[part]]) & set(groups[parts[other]])
    indices = np.concatenate(parts)
    assert len(set(indices)) == len(indices)
    if "train_limit" not in options:
        assert len(indices) == 160
    assert all((np.diff(part) > 0).all() for part in parts)


def test_without_groups_of_several_images_the_split_is_the_same() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    for config in (splitting.SplitConfig(test_fraction=0.2), splitting.SplitConfig(folds=3, train_limit=50)):
        alone = splitting.split_indices(labels, CLASSES, config, np.arange(200)[::-1])
        for part, expected in zip(alone, splitting.split_indices(labels, CLASSES, config), strict=True):
            np.testing.assert_array_equal(part, expected)


def test_a_fold_leaves_a_limited_number_to_train_on() -> None:
    labels = np.arange(100) % 4
    train, val, _ = split(labels, folds=5, fold=2, train_limit=40)
    assert (len(train), len(val)) == (40, 20)
    assert not set(train) & set(val)


def test_the_seed_decides_the_split() -> None:
    labels = np.repeat(np.arange(4), 50).astype(np.uint8)
    for part in (1, 2):
        first, again, other = (split(labels, test_fraction=0.2, seed=seed)[part].tolist() for seed in (0, 0, 1))
        assert first == again
        assert first != other


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        (
            [0, 1] * 50,
            {"test_fraction": 0.01},
            "preprocess.test_fraction: takes 1 images, fewer than there are classes",
        ),
        ([0, 1] * 50, {"val_fraction": 0.01}, "preprocess.val_fraction: takes 1 images, fewer than there are classes"),
        ([0] * 9 + [1] * 4, {"folds": 5}, "preprocess.folds: 5 parts of class 'dog', which has 4 images; use fewer"),
        ([0, 1] * 50, {"train_limit": 1}, "preprocess.train_limit: takes 1 images, fewer than there are classes"),
        ([0] * 99 + [1], {"val_fraction": 0.5}, "preprocess.val_fraction: leaves class 'dog' without a training image"),
    ],
)
def test_a_split_that_cannot_be_is_refused_by_name(labels: list[int], options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        split(np.array(labels), **options)
    assert says in str(error.value)


def test_a_limit_just_below_what_there_is_is_kept() -> None:
    train, _, _ = split(np.arange(1000) % 10, train_limit=899)
    assert len(train) == 899


@given(count=st.integers(1, 30), channels=st.sampled_from([1, 3]), low=st.integers(0, 255), seed=st.integers(0, 100))
def test_pixel_statistics_agree_with_numpy(count: int, channels: int, low: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(low, 256, (count, 4, 5, channels), dtype=np.uint8)
    mean, std = splitting.pixel_statistics(images)
    pixels = images.reshape(-1, channels) / 255
    assert mean == pytest.approx(pixels.mean(0))
    assert std == pytest.approx(np.maximum(pixels.std(0), 1 / 255))
    exact = [Fraction(int(channel.sum()), 255 * channel.size) for channel in np.moveaxis(images, 3, 0)]
    assert mean == [float(fraction) for fraction in exact]  # so that all processors find the same bits


def test_counts_by_class() -> None:
    def part(*labels: int) -> Split:
        return Split(np.zeros((len(labels), 2, 2, 3), np.uint8), np.array(labels, np.uint8))

    counts = splitting.count_images({"train": part(0, 0, 1), "val": part(1), "test": part()}, ["cat", "dog"])
    assert counts.model_dump() == {
        "classes": 2,
        "train": 3,
        "val": 1,
        "test": 0,
        "by_class": {"cat": {"train": 2, "val": 0, "test": 0}, "dog": {"train": 1, "val": 1, "test": 0}},
    }


def test_the_images_of_some_classes_get_labels_in_the_order_of_their_names() -> None:
    labels = np.array([2, 0, 1, 3, 2, 0], np.uint8)
    rows, kept = splitting.filter_classes(labels, ["ant", "bee", "cat", "dog"], ["dog", "cat"])
    assert rows.tolist() == [0, 3, 4]
    assert kept.tolist() == [1, 0, 1]
    assert kept.dtype == np.uint8
    rows, kept = splitting.filter_classes(labels, ["ant", "bee", "cat", "dog"], None)
    assert rows.tolist() == list(range(6))
    assert kept.tolist() == labels.tolist()
    with pytest.raises(
        UserError, match=r"^params.yaml: preprocess.classes: the data has no class 'cow'; it has ant, b"
    ):
        splitting.filter_classes(labels, ["ant", "bee"], ["ant", "cow"])
