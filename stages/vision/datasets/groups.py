"""Groups of near-duplicate images, each of which stays on one side of a random split."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vision.pipeline.errors import UserError
from vision.pipeline.validation import printable


def read_groups(path: Path, names: Sequence[str], has_test_split: bool) -> np.ndarray:
    """Read a table of groups, such as audit/duplicates.csv.

    Args:
        path: a CSV file with the columns `image` and `group`. An image that is not in the file is a group of its own.
        names: the names of all training images in data/raw, as in `vision.storage.names`.
        has_test_split: whether data/raw has a test split. Rows with `test` in the column `split` are then skipped,
            because these images are not split.

    Returns:
        int64 [N], the index of the first image of each image's group.

    Raises:
        UserError: the file is missing or not such a table, or it has an image that is not in `names`, or twice.
    """
    where = f"params.yaml: preprocess.groups: {path}"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, restkey="more"))
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}; `python tools/audit.py` writes audit/duplicates.csv") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where}: not a table ({error}); expected a CSV file with the columns image, group") from None
    index_of = {name: index for index, name in enumerate(names)}
    groups = np.arange(len(names), dtype=np.int64)
    first: dict[str, int] = {}
    seen: set[str] = set()
    for line, row in enumerate(rows, start=2):
        image, group = row.get("image"), row.get("group")
        if not image or not group:
            raise UserError(f"{where}: line {line}: has no image or no group; expected the columns image, group")
        if has_test_split and row.get("split") == "test":
            continue
        if image not in index_of:
            name = printable(image)[:100]
            raise UserError(f"{where}: line {line}: data/raw has no training image {name}; audit this data again")
        if image in seen:
            raise UserError(f"{where}: line {line}: image {printable(image)[:100]} is in the file twice; remove one")
        seen.add(image)
        groups[index_of[image]] = first.setdefault(group, index_of[image])
    return groups
