"""Out-of-fold predictions: those of the experiments that cross-validate."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vision.audit.data import AuditData
from vision.pipeline.errors import UserError
from vision.pipeline.validation import printable

Row = dict[str, Any]
"""An experiment as `dvc.api.exp_show` describes it."""


@dataclass(frozen=True)
class FoldPredictions:
    """Predictions by models that were not trained on the image: `indices` int64 [M], `probabilities` [M, classes]."""

    indices: np.ndarray
    probabilities: np.ndarray


def find_folds(rows: Sequence[Row], parameters: Sequence[str]) -> list[Row]:
    """Find the newest experiments that cross-validate completely.

    Args:
        rows: finished experiments, the newest first.
        parameters: the names of all parameters that a result depends on.

    Returns:
        One experiment for each fold, all with the same parameters apart from the fold; empty if there are none.
    """
    groups: defaultdict[tuple[Any, ...], dict[float, Row]] = defaultdict(dict)
    for row in rows:
        key = tuple(row.get(name) for name in parameters if name != "preprocess.fold")
        groups[key].setdefault(row.get("preprocess.fold", 0.0), row)
    for group in groups.values():
        if len(group) == next(iter(group.values())).get("preprocess.folds"):
            return [group[fold] for fold in sorted(group)]
    return []


def join_folds(texts: Mapping[str, str], data: AuditData) -> FoldPredictions:
    """Join the tables of the folds.

    Args:
        texts: data/predictions/val.csv by the name of the experiment.
        data: the images that are audited. Predictions of other images are left out.

    Raises:
        UserError: a table is damaged, or was made from other classes, labels or images.
    """
    index_of = {data.names[index]: index for index in data.indices("train", "val")}
    label_of = {name: label for label, name in enumerate(data.classes)}
    columns = [f"p_{name}" for name in data.classes]
    found: dict[int, list[float]] = {}
    for experiment, text in texts.items():
        where = f"{experiment}: data/predictions/val.csv"
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if reader.fieldnames is None or list(reader.fieldnames[3:]) != columns:
            raise UserError(f"{where}: was made with other classes than data/processed; run the folds again")
        for line, row in enumerate(reader, start=2):
            try:
                image, label = row["image"], label_of[row["actual"]]
                probabilities = [float(row[column]) for column in columns]
            except (KeyError, TypeError, ValueError) as error:
                reason = printable(error)[:100]
                raise UserError(f"{where}: line {line}: damaged ({reason}); run the folds again") from None
            if not all(0 <= value <= 1 for value in probabilities):
                raise UserError(f"{where}: line {line}: has probabilities outside 0 to 1; run the folds again")
            index = index_of.get(image)
            if index is None:
                continue
            if index in found or data.labels[index] != label:
                reason = "is in two folds" if index in found else "has another label in data/processed"
                raise UserError(f"{where}: line {line}: image {printable(image)[:100]} {reason}; run the folds again")
            found[index] = probabilities
    if not found:
        raise UserError("the folds have no image of data/processed; run the folds again")
    indices = np.array(sorted(found), dtype=np.int64)
    return FoldPredictions(indices, np.array([found[index] for index in indices]))
