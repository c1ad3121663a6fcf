"""The directories of a checkout."""

import os
from pathlib import Path

from vision.pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
"""The checkout that this code belongs to. In `dvc exp run --temp` this is the experiment's temporary copy."""


def main_root(root: Path) -> Path:
    """Return the main checkout: `root`, or the one that `dvc exp run --queue` or `--temp` copied to `root`."""
    for folder in root.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root


def resolve_path(path: str) -> Path:
    """Resolve a path from params.yaml to an absolute one without `..`.

    `~` is expanded, and a relative path starts at the root of the checkout. Links to folders are followed; a link at
    the end keeps its own name, because checksums are found by the name of an archive.

    Raises:
        UserError: `path` starts with `~name` and there is no such user.
    """
    try:
        folder, name = os.path.split(ROOT / Path(path).expanduser())
    except RuntimeError:
        raise UserError(f"{path.partition('/')[0]}: there is no such user") from None
    return Path(os.path.normpath(os.path.join(os.path.realpath(folder), name)))
