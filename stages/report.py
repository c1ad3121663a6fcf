"""One page to look at: how well the model does, where it errs, how it was trained; report/index.html holds it all."""

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vision import arrays, figures, tracking
from vision.params import Params, load_params
from vision.stage import ROOT, UserError, run_stage


def main() -> None:
    """Read what the other stages left, draw it, write the page; pictures and tables join the model's MLflow run."""
    params = load_params()
    results = read_results(ROOT)
    page = ROOT / "report" / "index.html"
    html = render(params, results)
    with arrays.replaced_file(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    with tracking.resumed_run(params.tracking, results.run["mlflow"]) as run:
        for name, chart in charts(results, "light").items():
            run.log_figure(name, chart)
        run.log_artifact(ROOT / "data" / "samples.png", "figures")
        run.log_artifact(page, "report")
        for table in ("history", "confusion_matrix", "per_class", "calibration"):
            run.log_artifact(ROOT / "metrics" / f"{table}.csv", "metrics")
    print(f"report: open {page} in a browser")


@dataclass(frozen=True)
class Results:
    """What the files of a run say; K classes, N test images.

    `confusion` is int [K, K], images by actual (rows) and predicted class; `actual` and `predicted` are int [N],
    `confidence` is float [N], the probability of the predicted class; `images` is uint8 [N, H, W, C].
    """

    classes: list[str]
    dataset: dict[str, Any]
    model: dict[str, Any]
    run: dict[str, Any]
    train: dict[str, Any]
    test: dict[str, Any]
    history: list[dict[str, Any]]
    per_class: list[dict[str, Any]]
    calibration: list[dict[str, Any]]
    confusion: np.ndarray
    actual: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    images: np.ndarray
    samples: Image.Image


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
    return environment.get_template("report.html.jinja").render(
        results=results,
        params=params.model_dump(),
        charts={name: _chart(light[name], dark[name]) for name in light if name != "confusion_matrix"},
        heat=heat(results.confusion),
        pairs=confused_pairs(results, surest, params.report.confused_pairs),
        predictions=[_shown(results, i) for i in figures.evenly(len(results.images), params.report.predictions)],
        mistakes=[_shown(results, i) for i in surest[: params.report.mistakes]],
        wrong=len(wrong),
        samples=_samples(results.samples),
    )


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
    """A parameter or a figure as it stands in its file."""
    return value if isinstance(value, str) else json.dumps(value)


def read_results(root: Path) -> Results:
    """Read what the other stages left below `root`.

    Raises:
        UserError: a file is missing or damaged, or two files do not belong together.
    """
    metrics, processed = root / "metrics", root / "data" / "processed"
    classes = arrays.read_stats(processed).classes
    images = arrays.read_split(processed, "test").images
    confusion = np.array(
        [list(row.values()) for row in _table(metrics / "confusion_matrix.csv", dict.fromkeys(classes, int))]
    )
    predictions = root / "data" / "predictions" / "test.csv"
    actual, predicted, confidence = _predictions(predictions, classes)
    counted = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(counted, (actual, predicted), 1)
    if len(actual) != len(images) or not np.array_equal(counted, confusion):
        raise UserError(f"{predictions}: does not fit {metrics} and {processed}; `dvc repro -f evaluate` renews it")
    losses = {f"{split}_{score}": _figure for split in ("train", "val") for score in ("loss", "accuracy")}
    scores = {"precision": float, "recall": float, "f1": float, "images": int}
    bins = {"confidence_from": float, "confidence_to": float, "images": int, "confidence": float, "accuracy": float}
    return Results(
        classes=classes,
        dataset=_document(metrics / "dataset.json", "classes", "train", "val", "test", "by_class"),
        model=_document(root / "models" / "model.json", "name"),
        run=_document(
            root / "models" / "run.json",
            "mlflow",
            *(f"environment.{key}" for key in ("device", "device_name", "precision", "versions")),
        ),
        train=_document(metrics / "train.json", "best_epoch", "epochs", "seconds", "images_per_s", "parameters"),
        test=_document(metrics / "test.json", "accuracy", "accuracy_one_view", "f1_macro", "calibration_error"),
        history=_table(metrics / "history.csv", losses),
        per_class=_table(metrics / "per_class.csv", {"class": str, **scores}),
        calibration=_table(metrics / "calibration.csv", bins),
        confusion=confusion,
        actual=actual,
        predicted=predicted,
        confidence=confidence,
        images=images,
        samples=_picture(root / "data" / "samples.png"),
    )


def _document(path: Path, *keys: str) -> dict[str, Any]:
    document = arrays.read_json(path)
    for key in keys:
        found: Any = document
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                raise UserError(f"{path}: lacks {key!r}; delete it and run `dvc repro`")
            found = found[part]
    return document


def _table(path: Path, columns: Mapping[str, Callable[[str], Any]]) -> list[dict[str, Any]]:
    rows = []
    for line, row in enumerate(arrays.read_csv(path), start=2):
        try:
            rows.append({name: convert(row[name]) for name, convert in columns.items()})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: line {line} is damaged ({error}); delete the file and run `dvc repro`") from None
    if not rows:
        raise UserError(f"{path}: holds no rows; delete it and run `dvc repro`")
    return rows


def _figure(cell: str) -> float | None:
    """A number; None for the empty cell of a split that there is not."""
    return float(cell) if cell else None


def _predictions(path: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    place = {name: label for label, name in enumerate(classes)}
    rows = arrays.read_csv(path)
    try:
        actual = np.array([place[row["actual"]] for row in rows], dtype=int)
        predicted = np.array([place[row["predicted"]] for row in rows], dtype=int)
        confidence = np.array([float(row[f"p_{row['predicted']}"]) for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged, or of other classes ({error}); delete it and run `dvc repro`") from None
    return actual, predicted, confidence


def _picture(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except OSError as error:
        raise UserError(f"{path}: not a picture ({error}); delete it and run `dvc repro`") from None


def _column(rows: list[dict[str, Any]], name: str) -> list[Any]:
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


if __name__ == "__main__":
    run_stage(main)
