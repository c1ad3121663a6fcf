import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from disks import file_size_limit
from vision.pipeline.errors import UserError
from vision.prediction.resumable_table import ResumableTable, TableSpec, open_table

ITEMS = [f'photos/"{number}", é.png' for number in range(10)]
SPEC = TableSpec(["image", "value"], ITEMS, "ab12")
UNREADABLE = {ITEMS[0]: "empty", ITEMS[4]: "truncated", ITEMS[9]: "no image"}
PART = 3


def fill(table: ResumableTable, end: int = len(ITEMS)) -> None:
    """Add the rows of all items from the first that is not done."""
    for start in range(table.done, end, PART):
        items = ITEMS[start : start + PART]
        rows = [(item, f"{ITEMS.index(item)}.5") for item in items if item not in UNREADABLE]
        table.append(start + len(items), rows, {item: UNREADABLE[item] for item in items if item in UNREADABLE})


def interrupt(path: Path, end: int) -> Path:
    """Leave the files of a run that was interrupted after some items; returns their folder."""
    with suppress(KeyboardInterrupt), open_table(path, SPEC) as table:
        fill(table, end)
        raise KeyboardInterrupt
    assert not path.exists()
    return path.with_name(f".{path.name}.partial")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "table.csv"
    with open_table(path, SPEC) as table:
        assert (table.done, table.problem) == (0, None)
        fill(table)
    assert [item.name for item in path.parent.iterdir()] == ["table.csv"]
    return path.read_bytes()


def test_the_file_has_the_header_and_all_rows(expected: bytes) -> None:
    lines = expected.decode().splitlines()
    assert lines[:2] == ["image,value", '"photos/""1"", é.png",1.5']
    assert len(lines) == 1 + len(ITEMS) - len(UNREADABLE)


@pytest.mark.parametrize("end", [0, 3, 6, 9, 10])
def test_an_interrupted_table_is_continued(end: int, expected: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    interrupt(path, end)
    with open_table(path, SPEC) as table:
        assert (table.done, table.problem) == (end, None)
        assert table.errors == {item: reason for item, reason in UNREADABLE.items() if ITEMS.index(item) < end}
        assert [row[0] for row in table.read_rows()] == [item for item in ITEMS[:end] if item not in UNREADABLE]
        fill(table)
        assert table.errors == UNREADABLE
    assert path.read_bytes() == expected
    assert [item.name for item in tmp_path.iterdir()] == ["table.csv"]


@given(rows=st.floats(0, 1), journal=st.floats(0, 1))
@example(0.99, 1)
@example(1, 0.99)
@example(0, 1)
@example(1, 0)
def test_files_that_end_anywhere_lead_to_the_same_bytes(expected: bytes, rows: float, journal: float) -> None:
    """A killed process leaves a part of the last write; a power cut may also leave less of the other file."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "table.csv")
        partial = interrupt(path, 9)
        for name, share in (("rows.csv", rows), ("journal.jsonl", journal)):
            content = (partial / name).read_bytes()
            (partial / name).write_bytes(content[: round(share * len(content))])
        with open_table(path, SPEC) as table:
            assert table.done % PART == 0
            fill(table)
            assert table.errors == UNREADABLE
        assert path.read_bytes() == expected


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (TableSpec(SPEC.header, ITEMS, "other"), "it had another model, other images or other settings"),
        (TableSpec(["image", "other"], ITEMS, "ab12"), "rows are missing"),
        (TableSpec(SPEC.header, ITEMS[::-1], "ab12"), "a row does not match the list of files"),
    ],
)
def test_rows_of_another_table_are_not_used(spec: TableSpec, problem: str, tmp_path: Path) -> None:
    interrupt(tmp_path / "table.csv", 6)
    with open_table(tmp_path / "table.csv", spec) as table:
        assert (table.done, table.errors, table.problem) == (0, {}, problem)
        assert list(table.read_rows()) == []
    assert (tmp_path / "table.csv").read_text() == ",".join(spec.header) + "\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda journal, rows: (b"{\n" + journal, rows),
        lambda journal, rows: (b"[]\n", rows),
        lambda journal, rows: (journal + b"[]\n", rows),
        lambda journal, rows: (journal + b'{"done": 9, "size": "x", "errors": {}}\n', rows),
        lambda journal, rows: (
            journal + json.dumps({"done": 9, "size": len(rows), "errors": 5}).encode() + b"\n",
            rows,
        ),
        lambda journal, rows: (journal, rows.replace(b"1.5", b"1,5")),
        lambda journal, rows: (journal, b"\xff" * len(rows)),
        lambda journal, rows: (journal, b"\n" * len(rows)),
        lambda journal, rows: (journal, b'"' * len(rows)),
        lambda journal, rows: (journal, rows.replace(b"photos", b"pHotos")),
    ],
)
def test_a_damaged_table_is_started_again(
    damage: Callable[[bytes, bytes], tuple[bytes, bytes]], expected: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    partial = interrupt(path, 6)
    files = partial / "journal.jsonl", partial / "rows.csv"
    for file, content in zip(files, damage(*(file.read_bytes() for file in files)), strict=True):
        file.write_bytes(content)
    with open_table(path, SPEC) as table:
        assert (table.done, table.errors) == (0, {})
        assert table.problem
        fill(table)
    assert path.read_bytes() == expected


def test_an_old_file_stays_until_the_new_one_is_complete(expected: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with open_table(path, SPEC) as table:
        fill(table)
        assert path.read_text() == "old"
    assert path.read_bytes() == expected


def test_a_table_that_is_being_written_is_refused(tmp_path: Path) -> None:
    with (
        open_table(tmp_path / "table.csv", SPEC),
        pytest.raises(UserError, match=r"table\.csv: another process writes this file"),
        open_table(tmp_path / "table.csv", SPEC),
    ):
        pytest.fail("two processes write the same table")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"), open_table(tmp_path, SPEC):
        pytest.fail("a folder was opened")


def test_a_full_disk_names_the_file_and_the_table_is_continued(expected: bytes, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.csv"
    with pytest.raises(OSError, match="too large") as raised, file_size_limit(150), open_table(path, SPEC) as table:
        fill(table)
    assert raised.value.filename == str(path)
    with open_table(path, SPEC) as table:
        assert table.problem is None
        fill(table)
    assert path.read_bytes() == expected
