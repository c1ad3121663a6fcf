"""The directories of a checkout."""

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
    """Resolve a path from params.yaml: expand `~`, and take a relative path from the root of the checkout.

    Raises:
        UserError: `path` starts with `~name` and there is no such user.
    """
    try:
        return ROOT / Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path.partition('/')[0]}: there is no such user") from None
