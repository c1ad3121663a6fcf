"""The report as one HTML page: charts, tables and pictures, all inside the file; page.html.jinja is its form."""

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vision.pipeline.params import Params
from vision.report import figures
from vision.report.results import Results


@dataclass(frozen=True)
class TestImage:
    """One picture on the page, and what the model takes it for."""

    number: int
    source: str
    actual: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class Pair:
    """Images of one class that were taken for another; `share` is of all images of the actual class."""

    actual: str
    predicted: str
    count: int
    share: float
    example: TestImage


def charts(results: Results, theme: figures.Theme) -> dict[str, Figure]:
    """All figures of the run by name."""
    history, per_class, calibration = results.history, results.per_class, results.calibration
    train_loss, train_accuracy = _column(history, "train_loss"), _column(history, "train_accuracy")
    validated = history[0]["val_loss"] is not None
    val_loss = _column(history, "val_loss") if validated else None
    val_accuracy = _column(history, "val_accuracy") if validated else None
    best = results.train["best_epoch"]
    return {
        "loss": figures.loss_curves(train_loss, val_loss, best_epoch=best, theme=theme),
        "accuracy": figures.accuracy_curves(train_accuracy, val_accuracy, best_epoch=best, theme=theme),
        "confusion_matrix": figures.confusion_matrix(results.confusion, results.classes, theme=theme),
        "per_class": figures.per_class_bars(
            *(_column(per_class, name) for name in ("class", "precision", "recall", "f1")), theme=theme
        ),
        "calibration": figures.calibration_curve(
            list(zip(_column(calibration, "confidence_from"), _column(calibration, "confidence_to"), strict=True)),
            *(_column(calibration, name) for name in ("images", "confidence", "accuracy")),
            theme=theme,
        ),
    }


def render(params: Params, results: Results) -> str:
    """The whole page as HTML that needs no other file, no script and no network."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": "{:.2%}".format, "count": "{:,}".format, "duration": duration, "plain": plain}
    wrong = np.flatnonzero(results.predicted != results.actual)
    surest = wrong[np.argsort(-results.confidence[wrong], kind="stable")]
    light, dark = charts(results, "light"), charts(results, "dark")
    return environment.get_template("page.html.jinja").render(
        results=results,
        params=params.model_dump(exclude={"search"}),
        charts={name: _chart(light[name], dark[name]) for name in light if name != "confusion_matrix"},
        heat=heat(results.confusion),
        pairs=confused_pairs(results, surest, params.report.confused_pairs),
        predictions=[_shown(results, i) for i in figures.evenly(len(results.images), params.report.predictions)],
        mistakes=[_shown(results, i) for i in surest[: params.report.mistakes]],
        wrong=len(wrong),
        samples=_samples(results.samples),
    )


def note(results: Results) -> str:
    """The headline figures as Markdown, for the head of the run's page in MLflow."""
    train, test, speed, environment = results.train, results.test, results.speed, results.run["environment"]
    validated = f", validation accuracy {train['val_accuracy']:.2%}" if "val_accuracy" in train else ""
    wrong = np.flatnonzero(results.predicted != results.actual)
    pairs = confused_pairs(results, wrong, 3)
    confused = [f"{literal(pair.actual)} → {literal(pair.predicted)} ({pair.count:,})" for pair in pairs]
    lines = [
        f"**{test['accuracy']:.2%}** test accuracy ({test['accuracy_one_view']:.2%} with one view of each image), "
        f"macro F1 {test['f1_macro']:.2%}",
        f"Epoch {train['best_epoch']} of {train['epochs']} was kept{validated}",
        f"{results.model['name']}, {train['parameters']:,} parameters, trained in {duration(speed['seconds'])} on "
        f"{environment['device_name']} ({environment['precision']}), {speed['share_of_peak']:.0%} of its measured peak",
        *([f"Most confused: {', '.join(confused)}"] if confused else []),
    ]
    return "\n".join(f"- {line}" for line in lines)


def literal(name: str) -> str:
    """The Markdown that shows a name as it is, whatever is in it: no tag, no link, no emphasis."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(name, quote=False))


def heat(confusion: np.ndarray) -> np.ndarray:
    """How strongly to colour each cell, in [0, 1]: hits by their share, mistakes compared with the worst mistake.

    On one common scale all mistakes would be invisible beside a diagonal near 100%.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    hits = np.eye(len(confusion), dtype=bool)
    worst = shares[~hits].max(initial=0)
    return np.where(hits, shares, shares / worst if worst else 0)


def confused_pairs(results: Results, surest: np.ndarray, wanted: int) -> list[Pair]:
    """The most frequent mistakes by actual and predicted class, with the first example of each in `surest`."""
    mistakes = results.confusion * ~np.eye(len(results.classes), dtype=bool)
    totals = results.confusion.sum(axis=1)
    pairs = []
    for place in np.argsort(-mistakes, axis=None, kind="stable")[: min(wanted, np.count_nonzero(mistakes))]:
        actual, predicted = divmod(int(place), len(results.classes))
        alike = (results.actual[surest] == actual) & (results.predicted[surest] == predicted)
        pairs.append(
            Pair(
                actual=results.classes[actual],
                predicted=results.classes[predicted],
                count=int(mistakes[actual, predicted]),
                share=float(mistakes[actual, predicted] / totals[actual]),
                example=_shown(results, surest[alike][0]),
            )
        )
    return pairs


def duration(seconds: float) -> str:
    """`8.4 s`, `12 min 05 s` or `3 h 20 min`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def plain(value: object) -> str:
    """A parameter or a figure as it stands in its file, floats to six digits."""
    if isinstance(value, float):
        value = float(f"{value:.6g}")
    return value if isinstance(value, str) else json.dumps(value)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


def _shown(results: Results, number: int) -> TestImage:
    image = results.images[number]
    picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    picture.thumbnail((96, 96))
    return TestImage(
        number=int(number),
        source=_data_uri(picture, "png"),
        actual=results.classes[results.actual[number]],
        predicted=results.classes[results.predicted[number]],
        confidence=float(results.confidence[number]),
    )


def _samples(picture: Image.Image) -> dict[str, Any]:
    """The sample picture as WebP, at most 1600 pixels wide, so that many classes do not make the page heavy."""
    picture = picture.copy()
    picture.thumbnail((1600, 16_000))
    return {"source": _data_uri(picture, "webp"), "width": picture.width, "height": picture.height}


def _data_uri(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _chart(light: Figure, dark: Figure) -> dict[str, Any]:
    light_source, dark_source = (
        f"data:image/svg+xml;base64,{base64.b64encode(figures.to_svg(figure)).decode()}" for figure in (light, dark)
    )
    width, height = light.get_size_inches() * 96
    return {"light": light_source, "dark": dark_source, "width": round(width), "height": round(height)}
