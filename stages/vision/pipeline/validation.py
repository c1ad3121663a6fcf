"""Types that pydantic checks documents against, and what it finds wrong in them, each in one line."""

import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import ErrorDetails, PydanticCustomError

_LONGEST = 120  # characters that are shown of a value


def printable(text: object) -> str:
    """A name or a value that may hold anything, on one line."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in str(text))


def breaks(text: str) -> bool:
    """Whether there is a line break in it, another control character, or half a character."""
    return any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in text)


def _on_one_line(text: str) -> str:
    if breaks(text):
        raise PydanticCustomError("line", "Value should have no line breaks and no control characters")
    if not text.strip():
        raise PydanticCustomError("line", "Value should have more than blanks")
    return text


def all_different(names: list[str]) -> list[str]:
    """The same names.

    Raises:
        PydanticCustomError: one is there twice.
    """
    if len(set(names)) < len(names):
        raise PydanticCustomError("twice", "List should have no name twice")
    return names


OneLine = AfterValidator(_on_one_line)
Line = Annotated[str, OneLine]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
NonNegativeCount = Annotated[int, Field(ge=0)]


def place(location: tuple[int | str, ...]) -> str:
    """Where in a document: `train.lr`."""
    return printable(".".join(map(str, location)))


def told(details: ErrorDetails) -> str:
    """One line for one of pydantic's errors: `train.lr: must be greater than 0 (got -1)`."""
    where, context = place(details["loc"]), details.get("ctx", {})
    start = f"{where}: " if where else ""
    match details["type"]:
        case "json_invalid":
            return f"not valid JSON ({context['error']})"
        case "missing":
            return f"{start}missing"
        case "literal_error":
            return f"{start}must be {context['expected']} {got(details['input'])}"
        case _:
            # "Input should be a valid number", "List should have at least 1 item after validation, not 0"
            message = re.sub(r"^\w+ should |( after validation)?, not \d+$", "", details["msg"])
            return f"{start}must {printable(message)} {got(details['input'])}"


def got(value: Any) -> str:
    """What was there instead, or how it begins."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no number of thousands of digits
        text = "a number of thousands of digits"
    return f"(got {printable(text if len(text) <= _LONGEST else text[:_LONGEST] + '…')})"
