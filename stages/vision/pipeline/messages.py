"""Lines for the user on stderr."""

import sys


def warn(name: str, message: str) -> None:
    """Print a warning or an error on stderr.

    Args:
        name: of the stage or program that it is about; each line starts with it.
        message: one or more lines.
    """
    for line in message.splitlines():
        print(f"{name}: {line}", file=sys.stderr, flush=True)
