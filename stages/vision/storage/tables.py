"""Read and write JSON and CSV files; a file that is read is validated."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from vision.pipeline.errors import UserError
from vision.pipeline.validation import format_error
from vision.storage.atomic import atomic_write


def write_json(path: Path, document: Any) -> None:
    """Write indented JSON with a final newline; of a pydantic model, the fields that are set."""
    if isinstance(document, BaseModel):
        document = document.model_dump(by_alias=True, exclude_unset=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, schema: Any = Any) -> Any:
    """Read JSON and validate it against a type that pydantic supports, such as a model or a dataclass.

    Raises:
        UserError: the file is missing, is not JSON or does not match the schema.
    """
    try:
        content = path.read_bytes()
        from_json(content, allow_inf_nan=False)
        return TypeAdapter(schema).validate_json(content, strict=True)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except ValidationError as error:
        raise UserError(f"{path}: {format_error(error.errors()[0])}; delete it and run `dvc repro`") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run `dvc repro`") from None


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; a float has as many digits as it takes to read the same float back."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_rows(path: Path, rows: Sequence[BaseModel], schema: type[BaseModel] | None = None) -> None:
    """Write a table; the fields of the pydantic model are the columns. Without rows, `schema` must be given."""
    fields = (schema or type(rows[0])).model_fields
    header = [field.serialization_alias or name for name, field in fields.items()]
    write_csv(path, header, [list(row.model_dump().values()) for row in rows])


def read_csv(path: Path, schema: Any = dict[str, str], allow_empty: bool = False) -> list[Any]:
    """Read a table; validate each row, a dictionary of text, and convert it to the schema.

    Args:
        path: the file.
        schema: a type that pydantic supports.
        allow_empty: accept a header without rows.

    Raises:
        UserError: the file is missing or not a table, has no rows, or a row does not match the schema.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            header, dicts = reader.fieldnames, list(reader)
        rows = TypeAdapter(list[schema]).validate_python(dicts)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except ValidationError as error:
        row, *column = error.errors()[0]["loc"]
        reason = format_error({**error.errors()[0], "loc": tuple(column)})
        raise UserError(f"{path}: line {int(row) + 2}: {reason}; delete the file and run `dvc repro`") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table ({error}); delete it and run `dvc repro`") from None
    if not rows and not (allow_empty and header):
        raise UserError(f"{path}: has no rows; delete it and run `dvc repro`")
    return rows
