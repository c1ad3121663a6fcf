"""Errors that a stage reports in one line instead of a traceback."""

import re
import sys
from pathlib import Path

DEBUG_HINT = "set VISION_DEBUG=1 for the traceback"

_MEMORY_PARAMETERS = {
    "preprocess": "preprocess.image_size or preprocess.train_limit",
    "train": "train.batch_size, model.image_size or the size of the network",
    "evaluate": "evaluate.batch_size",
}
"""The parameters that determine how much memory a stage needs."""


class UserError(Exception):
    """A mistake that the user can fix. The message names the file or parameter, what is wrong and what to do."""


def error_message(error: BaseException) -> str | None:
    """Return the message to show in place of a traceback; None for an error that should keep its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno is not None):
        # If a copy fails because the disk is full, `filename` is the source and `filename2` the target.
        return f"{error.filename2 or error.filename or 'system'}: {error.strerror} ({DEBUG_HINT})"
    if hint := resource_hint(error):
        return f"{hint} ({DEBUG_HINT})"
    return None


def resource_hint(error: BaseException) -> str | None:
    """Return what to change in params.yaml after an error that a parameter can avoid; None for other errors.

    These are lack of memory, a missing deterministic kernel, and a failure of torch.compile. The messages are compared
    because torch has no exception classes for most of them.
    """
    memory = r"OutOfMemory|out of memory|allocate memory|bad_alloc|ALLOC_FAILED|map segment|start new thread"
    if isinstance(error, MemoryError) or re.search(memory, repr(error)):
        stage = Path(sys.argv[0]).stem
        if stage in _MEMORY_PARAMETERS:
            return f"out of memory; lower {_MEMORY_PARAMETERS[stage]} in params.yaml"
        return "out of memory; close other programs"
    if match := re.match(r"(\S+) does not have a deterministic implementation", str(error)):
        return f"params.yaml: train.deterministic: {match[1]} has no deterministic kernel here; set it to false"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = next(filter(None, str(error).splitlines()), type(error).__name__)
        return f"params.yaml: train.compile: torch.compile failed ({reason}); set it to null"
    return None
