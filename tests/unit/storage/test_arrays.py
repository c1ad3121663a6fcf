from pathlib import Path

import numpy as np
import pytest

from disks import file_size_limit
from vision.pipeline.errors import UserError
from vision.storage import arrays, tables
from vision.storage.arrays import Split, Stats
from vision.storage.names import read_names, write_names


def split(count: int) -> Split:
    random = np.random.default_rng(count)
    return Split(
        random.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8), random.integers(0, 2, count, dtype=np.uint8)
    )


STATS = Stats(["cat", "dog"], [4, 5, 3], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1], "abc")


def test_raw_and_processed_data_are_read_as_written(tmp_path: Path) -> None:
    arrays.write_raw(tmp_path / "raw", split(6), split(3), ["cat", "dog"])
    train, test, classes = arrays.read_raw(tmp_path / "raw")
    assert np.array_equal(train.images, split(6).images)
    assert np.array_equal(test.labels, split(3).labels)
    assert classes == ["cat", "dog"]

    splits = {"train": split(6), "val": split(0), "test": split(3)}
    names = {"train": ["train/cat/é 1.png", *"12345"], "val": [], "test": ["7", "0", "2"]}
    arrays.write_processed(tmp_path / "processed", splits, names, STATS)
    for name, part in splits.items():
        assert read_names(tmp_path / "processed", name, len(part.labels)) == names[name]
    assert arrays.read_stats(tmp_path / "processed") == STATS
    assert arrays.read_split(tmp_path / "processed", "val", 2).images.shape == (0, 4, 5, 3)
    assert np.array_equal(arrays.read_split(tmp_path / "processed", "train", 2, [4, 5, 3]).images, split(6).images)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "not found; `dvc repro` makes it"),
        (b"1\n", "does not have one name for each of 2 images; delete it"),
        (b"1\n2", "does not have one name for each of 2 images; delete it"),
        (b"1\n\xff\n", "damaged .not UTF-8.; delete it"),
    ],
    ids=["missing", "a name less", "cut off", "binary"],
)
def test_damaged_names_are_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    write_names(tmp_path, "val", ["1", "2"])
    path = tmp_path / "val_names.txt"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=rf"/val_names.txt: {says}"):
        read_names(tmp_path, "val", 2)


def test_labels_of_many_classes_are_read_as_written(tmp_path: Path) -> None:
    many = Split(split(3).images, np.array([0, 256, 999], np.uint16))
    arrays.write_raw(tmp_path / "raw", many, many, [f"class {number}" for number in range(1000)])
    assert arrays.read_split(tmp_path / "raw", "train", 1000).labels.tolist() == [0, 256, 999]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "not found"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"no array"), "damaged"),
        (lambda path: np.save(path, np.array([{"a": 1}]), allow_pickle=True), "damaged"),
        (lambda path: np.save(path, np.zeros((6, 4, 5, 3))), "float64, expected uint8"),
        (lambda path: np.save(path, np.zeros((5, 4, 5, 3), np.uint8)), "do not match"),
    ],
    ids=["missing", "truncated", "empty", "foreign", "pickle", "dtype", "count"],
)
def test_damaged_arrays_are_refused(tmp_path: Path, damage: object, says: str) -> None:
    arrays.write_raw(tmp_path / "raw", split(6), split(3), ["cat", "dog"])
    damage(tmp_path / "raw/train_images.npy")  # type: ignore[operator]
    with pytest.raises(UserError, match=says):
        arrays.read_split(tmp_path / "raw", "train", 2)


def test_changed_stats_are_refused(tmp_path: Path) -> None:
    tables.write_json(tmp_path / "stats.json", {"mean": []})
    with pytest.raises(UserError, match="classes: missing; delete it"):
        arrays.read_stats(tmp_path)
    (tmp_path / "stats.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        arrays.read_stats(tmp_path)


@pytest.mark.parametrize("short", [1, 10, 1000])
def test_if_the_last_bytes_of_an_array_cannot_be_written_the_old_one_stays(tmp_path: Path, short: int) -> None:
    arrays.write_raw(tmp_path / "raw", split(100), split(3), ["cat", "dog"])
    size = (tmp_path / "raw/train_images.npy").stat().st_size
    with pytest.raises(OSError, match="File too large") as caught, file_size_limit(size - short):
        arrays.write_raw(tmp_path / "raw", split(100), split(3), ["cat", "dog"])
    assert caught.value.filename == str(tmp_path / "raw")
    assert np.array_equal(arrays.read_raw(tmp_path / "raw")[0].images, split(100).images)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_an_array_is_written_like_by_numpy(tmp_path: Path) -> None:
    images = split(6).images
    for number, array in enumerate([images, images[:0], images[::2], split(6).labels]):
        np.save(tmp_path / f"{number}.npy", np.ascontiguousarray(array))
        arrays._save_array(tmp_path / "written.npy", array)
        assert (tmp_path / "written.npy").read_bytes() == (tmp_path / f"{number}.npy").read_bytes()


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(5, 2, [0, 4]), (3, 9, [0, 1, 2]), (9, 3, [0, 4, 8]), (0, 4, []), (7, 1, [0])]
)
def test_evenly_spaced(total: int, count: int, expected: list[int]) -> None:
    assert arrays.evenly_spaced(total, count).tolist() == expected
