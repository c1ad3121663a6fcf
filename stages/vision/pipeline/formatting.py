"""Parameters and metrics as text."""

import json


def format_value(value: object, digits: int = 6) -> str:
    """Format a value as in params.yaml or a metrics file, a float to so many significant digits."""
    if isinstance(value, float):
        value = float(f"{value:.{digits}g}")
    return value if isinstance(value, str) else json.dumps(value)
