"""The progress bar of all stages: live in a terminal, one line every 15 seconds in a log file."""

import sys
from typing import Any

from tqdm import tqdm


def bar(total: int, unit: str, description: str, **options: Any) -> "tqdm[Any]":
    """Make a tqdm bar over `total` units; `options` are passed to tqdm."""
    seconds = 0.1 if sys.stderr.isatty() else 15
    return tqdm(
        total=total, unit=unit, desc=description, unit_scale=True, dynamic_ncols=True, mininterval=seconds, **options
    )
