import math
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.pipeline.errors import UserError
from vision.storage import arrays, atomic, tables
from vision.storage.arrays import Split, Stats


def split(count: int) -> Split:
    random = np.random.default_rng(count)
    return Split(
        random.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8), random.integers(0, 2, count, dtype=np.uint8)
    )


STATS = Stats(["cat", "dog"], [4, 5, 3], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1], "abc")


def test_raw_and_processed_data_come_back_as_written(tmp_path: Path) -> None:
    arrays.write_raw(tmp_path / "raw", split(6), split(3), ["cat", "dog"])
    train, test, classes = arrays.read_raw(tmp_path / "raw")
    assert np.array_equal(train.images, split(6).images)
    assert np.array_equal(test.labels, split(3).labels)
    assert classes == ["cat", "dog"]

    splits = {"train": split(6), "val": split(0), "test": split(3)}
    arrays.write_processed(tmp_path / "processed", splits, STATS)
    assert arrays.read_stats(tmp_path / "processed") == STATS
    assert arrays.read_split(tmp_path / "processed", "val", 2).images.shape == (0, 4, 5, 3)
    assert np.array_equal(arrays.read_split(tmp_path / "processed", "train", 2, [4, 5, 3]).images, split(6).images)


def test_labels_of_many_classes_come_back_as_written(tmp_path: Path) -> None:
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
        (lambda path: np.save(path, np.zeros((6, 4, 5, 3))), "float64, not uint8"),
        (lambda path: np.save(path, np.zeros((5, 4, 5, 3), np.uint8)), "do not fit together"),
    ],
    ids=["missing", "truncated", "empty", "foreign", "pickle", "dtype", "count"],
)
def test_damaged_arrays_are_refused(tmp_path: Path, damage: object, says: str) -> None:
    arrays.write_raw(tmp_path / "raw", split(6), split(3), ["cat", "dog"])
    damage(tmp_path / "raw/train_images.npy")  # type: ignore[operator]
    with pytest.raises(UserError, match=says):
        arrays.read_split(tmp_path / "raw", "train", 2)


def test_stats_and_json_of_another_making_are_refused(tmp_path: Path) -> None:
    tables.write_json(tmp_path / "stats.json", {"mean": []})
    with pytest.raises(UserError, match="classes: missing; delete it"):
        arrays.read_stats(tmp_path)
    (tmp_path / "stats.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        arrays.read_stats(tmp_path)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r"))


@given(st.lists(st.tuples(NAMES, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=5))
def test_tables_come_back_to_the_last_digit(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    tables.write_csv(path, ["name", "value"], rows)
    assert [(row["name"], float(row["value"])) for row in tables.read_csv(path)] == rows


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    tables.write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        tables.write_json(path, {"accuracy": math.nan})
    assert tables.read_json(path) == {"accuracy": 0.5}

    folder = tmp_path / "folder"
    with atomic.atomic_directory(folder) as temporary:
        (temporary / "old").touch()
    with pytest.raises(FileNotFoundError), atomic.atomic_directory(folder) as temporary:
        (temporary / "no such folder" / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "folder"]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Have no file grow beyond so many bytes, as on a disk that is full, for the block."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("short", [1, 10, 1000])
def test_an_array_whose_last_bytes_find_no_space_is_refused_and_the_old_one_stays(tmp_path: Path, short: int) -> None:
    arrays.write_raw(tmp_path / "raw", split(100), split(3), ["cat", "dog"])
    whole = (tmp_path / "raw/train_images.npy").stat().st_size
    with pytest.raises(OSError, match="File too large") as caught, no_file_above(whole - short):
        arrays.write_raw(tmp_path / "raw", split(100), split(3), ["cat", "dog"])
    assert caught.value.filename == str(tmp_path / "raw")
    assert np.array_equal(arrays.read_raw(tmp_path / "raw")[0].images, split(100).images)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_an_array_is_written_as_numpy_writes_it(tmp_path: Path) -> None:
    images = split(6).images
    for number, array in enumerate([images, images[:0], images[::2], split(6).labels]):
        np.save(tmp_path / f"{number}.npy", np.ascontiguousarray(array))
        arrays._save_array(tmp_path / "ours.npy", array)
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / f"{number}.npy").read_bytes()


def test_an_error_of_writing_names_the_file_that_was_to_be(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(bytes(1000))
    with pytest.raises(OSError, match="File too large") as caught, no_file_above(100):
        tables.write_json(tmp_path / "figures.json", list(range(100)))
    assert caught.value.filename == str(tmp_path / "figures.json")
    with (
        pytest.raises(OSError, match="File too large") as caught,
        no_file_above(100),
        atomic.atomic_directory(tmp_path / "raw") as made,
    ):
        shutil.copyfile(tmp_path / "photo", made / "photo")
    assert caught.value.filename == str(tmp_path / "raw")
    with pytest.raises(FileNotFoundError) as caught, atomic.atomic_write(tmp_path / "raw.json"):
        (tmp_path / "missing").read_text()
    assert caught.value.filename == str(tmp_path / "missing"), "what is read keeps its own name"


def test_what_a_killed_process_left_is_cleared_by_the_next_write(tmp_path: Path) -> None:
    left = tmp_path / ".folder.partial"
    left.mkdir()
    (left / "half").touch()
    with atomic.atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "whole"]
