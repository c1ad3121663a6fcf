"""Values and names as text."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def format_value(value: object, digits: int = 6) -> str:
    """Format a parameter or metric as in params.yaml or JSON, a float with that many significant digits."""
    if isinstance(value, float):
        value = float(f"{value:.{digits}g}")
    return value if isinstance(value, str) else json.dumps(value)


def shorten(name: str, length: int = 22) -> str:
    """Put a name on one line of at most `length` characters."""
    line = " ".join(name.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def flatten(sections: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of nested sections: their keys joined with dots, and the values as in params.yaml."""
    for key, value in sections.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
