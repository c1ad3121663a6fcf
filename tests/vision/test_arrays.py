import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision import arrays
from vision.arrays import Split, Stats
from vision.stage import UserError


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
    assert arrays.read_split(tmp_path / "processed", "val").images.shape == (0, 4, 5, 3)
    assert np.array_equal(arrays.read_split(tmp_path / "processed", "train").images, split(6).images)


def test_labels_of_many_classes_come_back_as_written(tmp_path: Path) -> None:
    many = Split(split(3).images, np.array([0, 256, 999], np.uint16))
    arrays.write_raw(tmp_path / "raw", many, many, [f"class {number}" for number in range(1000)])
    assert arrays.read_split(tmp_path / "raw", "train").labels.tolist() == [0, 256, 999]


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
        arrays.read_split(tmp_path / "raw", "train")


def test_stats_and_json_of_another_making_are_refused(tmp_path: Path) -> None:
    arrays.write_json(tmp_path / "stats.json", {"mean": []})
    with pytest.raises(UserError, match="not made by the preprocess stage"):
        arrays.read_stats(tmp_path)
    (tmp_path / "stats.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        arrays.read_stats(tmp_path)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r"))


@given(st.lists(st.tuples(NAMES, st.floats(allow_nan=False, allow_infinity=False)), max_size=5))
def test_tables_come_back_to_the_last_digit(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    arrays.write_csv(path, ["name", "value"], rows)
    assert [(row["name"], float(row["value"])) for row in arrays.read_csv(path)] == rows


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    arrays.write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        arrays.write_json(path, {"accuracy": math.nan})
    assert arrays.read_json(path) == {"accuracy": 0.5}

    folder = tmp_path / "folder"
    with arrays.replaced_directory(folder) as temporary:
        (temporary / "old").touch()
    with pytest.raises(FileNotFoundError), arrays.replaced_directory(folder) as temporary:
        (temporary / "no such folder" / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "folder"]


def test_what_a_killed_process_left_is_cleared_by_the_next_write(tmp_path: Path) -> None:
    left = tmp_path / ".folder.partial"
    left.mkdir()
    (left / "half").touch()
    with arrays.replaced_directory(tmp_path / "folder") as temporary:
        (temporary / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "whole"]
