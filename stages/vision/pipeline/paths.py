"""The directories of a checkout."""

from pathlib import Path

from vision.pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
"""The checkout that this code belongs to; inside `dvc exp run --temp` it is the experiment's own copy."""


def main_root(root: Path) -> Path:
    """The checkout that lasts: `root`, or the one whose copy it is that `dvc exp run --queue` or `--temp` made."""
    for folder in root.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root


def resolve_path(path: str) -> Path:
    """A path as the user wrote it: `~` is a home, and a relative one begins at the checkout.

    Raises:
        UserError: there is no such home.
    """
    try:
        return ROOT / Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path.partition('/')[0]}: there is no such user") from None
