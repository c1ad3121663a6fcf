"""One progress bar for all stages: with rate and ETA in a terminal, a line now and then in a log file."""

import sys
from typing import Any

from tqdm import tqdm


def bar(total: int, unit: str, description: str, **options: Any) -> "tqdm[Any]":
    """A tqdm bar over `total` units; `options` are tqdm's own."""
    seconds = 0.1 if sys.stderr.isatty() else 15
    return tqdm(
        total=total, unit=unit, desc=description, unit_scale=True, dynamic_ncols=True, mininterval=seconds, **options
    )
