"""Render the page of an audit, page.html.jinja, as one HTML file with all pictures inside."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from vision.audit.data import AuditData
from vision.audit.findings import Findings, count_findings
from vision.evaluation.intervals import wilson
from vision.storage.arrays import SPLITS

MAX_LABEL_ERRORS = 100
MAX_PAIRS = 80
MAX_OUTLIERS = 40
_MAX_SIDE = 96
"""Pixels of the larger side of a picture."""


@dataclass(frozen=True)
class Picture:
    """An image on the page: its data URI, its name and its class."""

    source: str
    title: str
    label: str


def render(findings: Findings) -> str:
    """Render the page. It needs no other file, no script and no network."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": "{:.2%}".format, "count": "{:,}".format}
    data, outliers, fresh = findings.data, findings.outliers, ~findings.repeats_training()
    counts = {split: np.bincount(data.labels[data.indices(split)], minlength=len(data.classes)) for split in SPLITS}
    return environment.get_template("page.html.jinja").render(
        metrics=count_findings(findings),
        label_errors=_label_errors(findings),
        pairs=_pairs(findings),
        outliers=[
            {"picture": _picture(data, index), "distance": distance}
            for index, distance in zip(outliers.indices, outliers.distances[:MAX_OUTLIERS], strict=False)
        ],
        balance=[(name, [int(counts[split][label]) for split in SPLITS]) for label, name in enumerate(data.classes)],
        accuracies=[
            (title, len(correct), float(correct.mean()), wilson(int(correct.sum()), len(correct)))
            for title, correct in (
                ("All test images", findings.correct),
                ("Without a near-duplicate in training", findings.correct[fresh]),
                ("With one", findings.correct[~fresh]),
            )
            if len(correct)
        ],
    )


def _label_errors(findings: Findings) -> list[dict[str, Any]]:
    labels = findings.labels
    if labels is None:
        return []
    rows = labels.errors.indices[:MAX_LABEL_ERRORS]
    return [
        {
            "picture": _picture(findings.data, labels.indices[row]),
            "predicted": findings.data.classes[labels.probabilities[row].argmax()],
            "probability": labels.probabilities[row].max(),
        }
        for row in rows
    ]


def _pairs(findings: Findings) -> list[dict[str, Any]]:
    """The pairs to show: those across training and test first, then other splits, then within a split."""
    data, pairs = findings.data, findings.pairs
    apart = (data.splits[pairs.first] != data.splits[pairs.second]).astype(int)
    order = np.argsort(-(apart + findings.crosses("train", "test")), kind="stable")[:MAX_PAIRS]
    return [
        {
            "pictures": [_picture(data, pairs.first[row]), _picture(data, pairs.second[row])],
            "correlation": pairs.correlation[row],
        }
        for row in order
    ]


def _picture(data: AuditData, index: int) -> Picture:
    image = Image.fromarray(data.images[index])
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(source, data.title(index), data.classes[data.labels[index]])
