"""Render the report: one HTML file with all charts, tables and pictures inside, a model card, and a summary."""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vision.pipeline.formatting import format_value
from vision.pipeline.metrics_schemas import CorruptionScore
from vision.pipeline.params import Params
from vision.report import charts
from vision.report.results import Results
from vision.storage.arrays import evenly_spaced


@dataclass(frozen=True)
class ImageTile:
    """A test image with its prediction.

    Attributes:
        index: of the image in the test split.
        source: the image as a data URI.
        heat: the image with its heat map as a data URI; None without a heat map.
        actual: the name of its class.
        predicted: the name of the predicted class.
        confidence: the probability of the predicted class.
    """

    index: int
    source: str
    heat: str | None
    actual: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were predicted as another; `share` is relative to all images of the actual class."""

    actual: str
    predicted: str
    count: int
    share: float
    example: ImageTile


def render(params: Params, results: Results) -> str:
    """Render the page. It needs no other file, no script and no network."""
    errors = _errors(results)
    light, dark = (charts.make_charts(results, theme) for theme in ("light", "dark"))
    shown = evenly_spaced(len(results.images), params.report.predictions)
    return _get_template("page.html.jinja").render(
        results=results,
        params=params.model_dump(exclude={"search"}),
        charts={name: _chart(light[name], dark[name]) for name in light if name != "confusion_matrix"},
        heat=heat(results.confusion),
        corruptions=corruption_table(results.corruptions),
        pairs=confused_pairs(results, params.report.confused_pairs),
        predictions=[_tile(results, index) for index in shown],
        mistakes=[_tile(results, index, with_heat=True) for index in errors[: params.report.mistakes]],
        errors=len(errors),
        samples=_samples(results.samples),
    )


def render_card(params: Params, results: Results) -> str:
    """Render the model card, model_card.md.jinja, as Markdown."""
    counts = [split.train for split in results.dataset.by_class.values()]
    return _get_template("model_card.md.jinja").render(
        results=results,
        params=params,
        pairs=confused_pairs(results, 3),
        largest=max(counts),
        smallest=min(counts),
    )


def _get_template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": "{:.2%}".format,
        "count": "{:,}".format,
        "duration": format_duration,
        "value": format_value,
        "md": escape_markdown,
    }
    return environment.get_template(name)


def summary(results: Results) -> str:
    """Summarize the run as Markdown, for the description of the MLflow run."""
    train, test, speed, environment = results.train, results.test, results.speed, results.run.environment
    validation = "" if train.val_accuracy is None else f", validation accuracy {train.val_accuracy:.2%}"
    pairs = [
        f"{escape_markdown(pair.actual)} → {escape_markdown(pair.predicted)} ({pair.count:,})"
        for pair in confused_pairs(results, 3)
    ]
    lines = [
        f"**{test.accuracy:.2%}** test accuracy (95% interval {test.accuracy_low:.2%} to {test.accuracy_high:.2%}; "
        f"{test.accuracy_one_view:.2%} with one view per image), "
        f"macro F1 {test.f1_macro:.2%}",
        f"Weights of epoch {train.best_epoch} of {train.epochs}{validation}",
        f"{results.model['name']}, {train.parameters:,} parameters, trained in {format_duration(speed.seconds)} on "
        f"{environment.device_name} ({environment.precision}), {speed.share_of_peak:.0%} of its measured peak",
        *([f"Most confused: {', '.join(pairs)}"] if pairs else []),
    ]
    return "\n".join(f"- {line}" for line in lines)


def escape_markdown(text: str) -> str:
    """Escape a name, so that Markdown shows it unchanged: no tag, no link, no emphasis."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(text, quote=False))


def heat(confusion: np.ndarray) -> np.ndarray:
    """Compute the color intensity in [0, 1] of each cell of the confusion matrix.

    The diagonal is the share of the actual class. Other cells are relative to the largest of them, because on the scale
    of the diagonal they would be invisible.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(len(confusion), dtype=bool)
    largest = shares[~diagonal].max(initial=0)
    return np.where(diagonal, shares, shares / largest if largest else 0)


def confused_pairs(results: Results, count: int) -> list[ConfusedPair]:
    """Find the most frequent mistakes by actual and predicted class, each with its most confident example."""
    mistakes = results.confusion * ~np.eye(len(results.classes), dtype=bool)
    totals = results.confusion.sum(axis=1)
    errors = _errors(results)
    actual_of_errors, predicted_of_errors = results.predictions.actual[errors], results.predictions.predicted[errors]
    pairs = []
    for cell in np.argsort(-mistakes, axis=None, kind="stable")[: min(count, np.count_nonzero(mistakes))]:
        actual, predicted = divmod(int(cell), len(results.classes))
        examples = errors[(actual_of_errors == actual) & (predicted_of_errors == predicted)]
        pairs.append(
            ConfusedPair(
                actual=results.classes[actual],
                predicted=results.classes[predicted],
                count=int(mistakes[actual, predicted]),
                share=float(mistakes[actual, predicted] / totals[actual]),
                example=_tile(results, examples[0]),
            )
        )
    return pairs


def corruption_table(rows: Sequence[CorruptionScore]) -> dict[str, list[float]]:
    """Return the accuracies of each corruption, by severity; empty if corruptions are off."""
    table: dict[str, list[float]] = {}
    for row in rows:
        table.setdefault(row.corruption.replace("_", " "), []).append(row.accuracy)
    return table


def format_duration(seconds: float) -> str:
    """Format a duration: `8.4 s`, `12 min 05 s` or `3 h 20 min`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _errors(results: Results) -> np.ndarray:
    """Return the indices of the misclassified test images, the most confident first."""
    predictions = results.predictions
    errors = np.flatnonzero(predictions.predicted != predictions.actual)
    return errors[np.argsort(-predictions.confidence[errors], kind="stable")]


def _tile(results: Results, index: int, with_heat: bool = False) -> ImageTile:
    image, predictions = results.images[index], results.predictions
    picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    picture.thumbnail((96, 96))
    found = np.flatnonzero(with_heat & (results.heat_maps.indices == index))
    return ImageTile(
        index=int(index),
        source=_data_uri(picture, "png"),
        heat=_data_uri(blend_heat(picture, results.heat_maps.heat[found[0]]), "webp") if len(found) else None,
        actual=results.classes[predictions.actual[index]],
        predicted=results.classes[predictions.predicted[index]],
        confidence=float(predictions.confidence[index]),
    )


def blend_heat(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Color the parts of a picture by a heat map, uint8 [h, w]: dark where it is 0, yellow where it is 255."""
    size = (96, round(96 * picture.height / picture.width))
    smooth = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR))
    colors = mpl.colormaps["inferno"](smooth, bytes=True)
    gray = picture.convert("L").convert("RGB").resize(size, Image.Resampling.NEAREST)
    return Image.blend(gray, Image.fromarray(colors[:, :, :3]), 0.5)


def _samples(picture: Image.Image) -> dict[str, Any]:
    """Convert the sample picture to WebP of at most 1600 pixels in width, to keep the page small."""
    picture = picture.copy()
    picture.thumbnail((1600, 16_000))
    return {"source": _data_uri(picture, "webp"), "width": picture.width, "height": picture.height}


def _data_uri(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _chart(light: Figure, dark: Figure) -> dict[str, Any]:
    light_source, dark_source = (
        f"data:image/svg+xml;base64,{base64.b64encode(charts.to_svg(figure)).decode()}" for figure in (light, dark)
    )
    width, height = light.get_size_inches() * 96
    return {"light": light_source, "dark": dark_source, "width": round(width), "height": round(height)}
