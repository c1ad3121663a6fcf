"""Lines for the user on stderr."""

import sys


def warn(name: str, message: str) -> None:
    """Print each line of `message` on stderr, after the name of the stage or program that it is about."""
    for line in message.splitlines():
        print(f"{name}: {line}", file=sys.stderr, flush=True)
