"""The tables of an audit as CSV files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vision.audit.findings import Findings
from vision.storage.tables import write_csv


def write_tables(folder: Path, findings: Findings) -> None:
    """Write duplicates.csv, outliers.csv and, if labels were checked, label_errors.csv."""
    data = findings.data
    write_csv(
        folder / "duplicates.csv",
        ["group", "image", "split", "class", "nearest", "nearest_split", "correlation"],
        _duplicate_rows(findings),
    )
    write_csv(
        folder / "outliers.csv",
        ["image", "split", "class", "distance"],
        (
            (data.names[index], data.splits[index], data.classes[data.labels[index]], distance)
            for index, distance in zip(findings.outliers.indices, findings.outliers.distances, strict=True)
        ),
    )
    if findings.labels is not None:
        write_csv(
            folder / "label_errors.csv",
            ["image", "split", "given", "predicted", "p_given", "p_predicted", "quality"],
            _label_rows(findings),
        )


def _duplicate_rows(findings: Findings) -> Iterator[tuple[object, ...]]:
    """The images with near-duplicates by group, each with the one that it correlates with most."""
    data, pairs = findings.data, findings.pairs
    nearest: dict[int, tuple[int, np.float32]] = {}
    for first, second, correlation in zip(pairs.first, pairs.second, pairs.correlation, strict=True):
        nearest.setdefault(first, (second, correlation))  # the highest correlation comes first
        nearest.setdefault(second, (first, correlation))
    groups = findings.groups
    for index in sorted(nearest, key=lambda index: (groups[index], index)):
        other, correlation = nearest[index]
        name, split, label = data.names[index], data.splits[index], data.classes[data.labels[index]]
        yield groups[index], name, split, label, data.names[other], data.splits[other], correlation


def _label_rows(findings: Findings) -> Iterator[tuple[object, ...]]:
    data, labels = findings.data, findings.labels
    assert labels is not None
    for row, quality in zip(labels.errors.indices, labels.errors.quality, strict=True):
        index, probabilities = labels.indices[row], labels.probabilities[row]
        given, predicted = data.labels[index], probabilities.argmax()
        names = data.names[index], data.splits[index], data.classes[given], data.classes[predicted]
        yield *names, probabilities[given], probabilities[predicted], quality
