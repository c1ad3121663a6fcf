"""Errors that a stage reports in one line."""

import re
import sys
from pathlib import Path

_LOWER = {
    "preprocess": "preprocess.image_size or preprocess.train_limit",
    "train": "train.batch_size, model.image_size or the size of the network",
    "evaluate": "evaluate.batch_size",
}
"""What makes a stage need less memory."""


class UserError(Exception):
    """Something that the user can put right; the message names the file or parameter, what is wrong and what to do."""


def resource_hint(error: BaseException) -> str | None:
    """What the user can change where an error comes of a parameter; torch has no classes for most of these."""
    said = r"OutOfMemory|out of memory|allocate memory|bad_alloc|ALLOC_FAILED|map segment|start new thread"
    if isinstance(error, MemoryError) or re.search(said, repr(error)):
        stage = Path(sys.argv[0]).stem
        lower = f"lower {_LOWER[stage]} in params.yaml" if stage in _LOWER else "end other programs"
        return f"out of memory; {lower}"
    if found := re.match(r"(\S+) does not have a deterministic implementation", str(error)):
        return f"params.yaml: train.deterministic: there is no deterministic kernel of {found[1]} here; set it to false"
    return None
