"""Values and names as text."""

import json


def format_value(value: object, digits: int = 6) -> str:
    """Format a parameter or metric as in params.yaml or JSON, a float with that many significant digits."""
    if isinstance(value, float):
        value = float(f"{value:.{digits}g}")
    return value if isinstance(value, str) else json.dumps(value)


def shorten(name: str, length: int = 22) -> str:
    """Put a name on one line of at most `length` characters."""
    line = " ".join(name.split())
    return line if len(line) <= length else line[: length - 1] + "…"
