"""Types for pydantic models, and pydantic's errors as one line each."""

import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import ErrorDetails, PydanticCustomError

_MAX_LENGTH = 120  # characters of a value in a message


def printable(text: object) -> str:
    """Return a text on one line, with control characters escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def has_control_characters(text: str) -> bool:
    """Return whether a text holds a line break, another control character or a lone surrogate."""
    return any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text)


def check_one_line(text: str) -> str:
    """Return the text unchanged.

    Raises:
        PydanticCustomError: it has line breaks or control characters, or is blank.
    """
    if has_control_characters(text):
        raise PydanticCustomError("line", "Value should have no line breaks and no control characters")
    if not text.strip():
        raise PydanticCustomError("line", "Value should not be blank")
    return text


def check_unique(names: list[str]) -> list[str]:
    """Return the names unchanged.

    Raises:
        PydanticCustomError: a name occurs twice.
    """
    if len(set(names)) < len(names):
        raise PydanticCustomError("unique", "List should have unique names")
    return names


OneLine = AfterValidator(check_one_line)
Line = Annotated[str, OneLine]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
NonNegativeCount = Annotated[int, Field(ge=0)]


def format_location(location: tuple[int | str, ...]) -> str:
    """Format a location in a document: `train.lr`."""
    return printable(".".join(map(str, location)))


def format_error(details: ErrorDetails) -> str:
    """Format one of pydantic's errors as one line: `train.lr: must be greater than 0 (got -1)`."""
    location, context = format_location(details["loc"]), details.get("ctx", {})
    start = f"{location}: " if location else ""
    match details["type"]:
        case "json_invalid":
            return f"not valid JSON ({context['error']})"
        case "missing":
            return f"{start}missing"
        case "extra_forbidden":
            return f"{start}unknown key"
        case "literal_error":
            return f"{start}must be {context['expected']} {format_input(details['input'])}"
        case _:
            # "Input should be a valid number", "List should have at least 1 item after validation, not 0"
            message = re.sub(r"^\w+ should |( after validation)?, not \d+$", "", details["msg"])
            return f"{start}must {printable(message)} {format_input(details['input'])}"


def format_input(value: Any) -> str:
    """Format the value that was found, shortened if it is long: `(got -1)`."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print an integer of more than 4300 digits
        text = "a number of thousands of digits"
    return f"(got {printable(text if len(text) <= _MAX_LENGTH else text[:_MAX_LENGTH] + '…')})"
