"""A CSV file that is written in parts. After an interruption it is continued, with the same bytes in the end."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from filelock import Timeout

from vision.pipeline.errors import UserError
from vision.storage.atomic import sync
from vision.storage.locks import lock_dir


@dataclass(frozen=True)
class TableSpec:
    """What a table will hold.

    Attributes:
        header: names of the columns; the first column has the item of each row.
        items: the items in the order of the rows; some may get no row.
        fingerprint: a hash of everything that the rows depend on.
    """

    header: Sequence[str]
    items: Sequence[str]
    fingerprint: str


class ResumableTable:
    """The unfinished table in a folder: rows.csv, and journal.jsonl, which says which items are done.

    The first line of the journal has the fingerprint. `append` writes rows first and then a line of the journal. When
    the table is opened again, rows that no line of the journal covers are removed.

    Attributes:
        done: how many items are done.
        errors: why a done item has no row, by item.
        problem: why the rows of an interrupted run were discarded; None if they were used, or if there were none.
    """

    def __init__(self, folder: Path, spec: TableSpec) -> None:
        """Open the table in a folder that exists. The rows of an interrupted run are used if they fit `spec`."""
        self.spec = spec
        self.done = 0
        self.errors: dict[str, str] = {}
        self.problem: str | None = None
        self._rows_path, self._journal_path = folder / "rows.csv", folder / "journal.jsonl"
        self._rows_file, self._journal_file = _open(self._rows_path), _open(self._journal_path)
        try:
            self._resume()
        # A damaged journal may hold any JSON.
        except (ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
            self.done, self.errors, self.problem = 0, {}, str(error)
        if not self.done:
            _truncate(self._rows_file, 0)
            _truncate(self._journal_file, 0)
            _write(self._rows_file, _to_csv([spec.header]))
            _write(self._journal_file, _to_line({"fingerprint": spec.fingerprint}))

    def append(self, done: int, rows: Iterable[Sequence[object]], errors: Mapping[str, str]) -> None:
        """Add the rows of the next items.

        Args:
            done: how many items are done with these.
            rows: a row for each of the items that is not in `errors`, in order.
            errors: why items have no row, by item.
        """
        _write(self._rows_file, _to_csv(rows))
        os.fsync(self._rows_file.fileno())  # so that after a power cut the journal covers no missing rows
        _write(self._journal_file, _to_line({"done": done, "size": self._rows_file.tell(), "errors": dict(errors)}))
        self.done = done
        self.errors.update(errors)

    def read_rows(self) -> Iterator[list[str]]:
        """Read the rows from the file, without the header.

        Raises:
            ValueError, csv.Error: the file is not the table that `append` wrote.
        """
        with self._rows_path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            items = (item for item in self.spec.items[: self.done] if item not in self.errors)
            for row, item in zip(reader, chain(items, repeat(None)), strict=False):
                if len(row) != len(self.spec.header) or row[0] != item:
                    raise ValueError("a row does not match the list of files")
                yield row
            if header != self.spec.header or next(items, None) is not None:
                raise ValueError("rows are missing")

    def publish(self, path: Path) -> None:
        """Move the rows to `path`, and remove the journal."""
        self.close()
        sync(self._rows_path)
        os.replace(self._rows_path, path)
        self._journal_path.unlink()

    def close(self) -> None:
        """Close the files. A new object can open the table again."""
        self._rows_file.close()
        self._journal_file.close()

    def _resume(self) -> None:
        """Find out what is done, and remove incomplete lines and rows from the files.

        Raises:
            ValueError and others: the files are damaged, or belong to a table with another fingerprint.
        """
        lines = self._journal_path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        first, *entries = [json.loads(line) for line in lines] or [None]
        if first is not None and first["fingerprint"] != self.spec.fingerprint:
            raise ValueError("it had another model, other images or other settings")
        if not entries:
            return
        last: dict[str, Any] = entries[-1]
        if self._rows_path.stat().st_size < last["size"]:
            raise ValueError("rows are missing")
        _truncate(self._rows_file, last["size"])
        _truncate(self._journal_file, sum(map(len, lines)))
        self.done = last["done"]
        for entry in entries:
            self.errors |= entry["errors"]
        for _ in self.read_rows():
            pass


@contextmanager
def open_table(path: Path, spec: TableSpec) -> Iterator[ResumableTable]:
    """Open the unfinished table of `path` for the block, and move it to `path` after the block.

    If the block raises or the process is killed, the unfinished table stays in the folder `.<name>.partial`.

    Raises:
        UserError: another process writes this table, or `path` is a folder.
        OSError: the table cannot be written; `filename` is `path`.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected the name of a file")
    folder = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_dir(folder):
            table = ResumableTable(folder, spec)
            try:
                yield table
                table.publish(path)
            finally:
                table.close()
    except Timeout:
        raise UserError(f"{path}: another process writes this file; wait until it ends") from None
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).name.startswith(folder.name):
            error.filename, error.filename2 = str(path), None
        raise


def _to_csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _to_line(entry: Mapping[str, object]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _open(path: Path) -> io.FileIO:
    return path.open("r+b" if path.exists() else "x+b", buffering=0)


def _truncate(file: io.FileIO, size: int) -> None:
    file.truncate(size)
    file.seek(size)


def _write(file: io.FileIO, content: bytes) -> None:
    view = memoryview(content)
    while view:  # a write without a buffer may be partial
        view = view[file.write(view) :]
