"""JSON and CSV files, checked when they are read."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from vision.pipeline.errors import UserError
from vision.pipeline.validation import format_error
from vision.storage.atomic import atomic_write


def write_json(path: Path, document: Any) -> None:
    """Write indented JSON with a final newline."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, kind: Any = Any) -> Any:
    """Read JSON that is of a kind: a type that pydantic knows, such as a dataclass, with its bounds.

    Raises:
        UserError: the file is missing, is not JSON, or of another kind.
    """
    try:
        content = path.read_bytes()
        from_json(content, allow_inf_nan=False)
        return TypeAdapter(kind).validate_json(content, strict=True)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except ValidationError as error:
        raise UserError(f"{path}: {format_error(error.errors()[0])}; delete it and run `dvc repro`") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run `dvc repro`") from None


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; floats keep every digit that they need to be read back as they were."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(path: Path, kind: Any = dict[str, str]) -> list[Any]:
    """Read a table of one row at least, each a dictionary of a kind: a type that pydantic brings the cells to.

    Raises:
        UserError: the file is missing, is not such a table, or a row is of another kind.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        read = TypeAdapter(list[kind]).validate_python(rows)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except ValidationError as error:
        row, *column = error.errors()[0]["loc"]
        mistake = format_error({**error.errors()[0], "loc": tuple(column)})
        raise UserError(f"{path}: line {int(row) + 2}: {mistake}; delete the file and run `dvc repro`") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table ({error}); delete it and run `dvc repro`") from None
    if not read:
        raise UserError(f"{path}: holds no rows; delete it and run `dvc repro`")
    return read
