"""Evaluate the model on the test split, which training never uses. The metrics are added to the model's MLflow run."""

from vision.pipeline.stage import peak_memory, run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import time
from dataclasses import dataclass

import numpy as np

from vision.artifacts.trained_model import load_model
from vision.core.config import TTAConfig
from vision.core.models.classifier import Classifier
from vision.evaluation import scores
from vision.evaluation.corruptions.scoring import find_source, mean_accuracy, score_corruptions
from vision.evaluation.heat_maps import explain_mistakes
from vision.evaluation.predictions import Predictions, calibrate, predict_with_progress
from vision.pipeline.device import set_up_device
from vision.pipeline.errors import UserError
from vision.pipeline.metrics_schemas import CorruptionScore, RunRecord, TestMetrics
from vision.pipeline.params import load_params
from vision.pipeline.paths import ROOT
from vision.search.cpu_shares import share_cores
from vision.storage import arrays, atomic, tables
from vision.storage.arrays import HeatMaps, Split
from vision.storage.names import read_names
from vision.tracking import mlflow_run


@dataclass(frozen=True)
class Data:
    """The model and the images that it is evaluated on.

    Attributes:
        model: on the CPU, in evaluation mode.
        min_confidence: an image whose highest probability is lower is unknown; None without validation images.
        classes: the names of the classes.
        val: the validation split, which may be empty.
        test: the test split.
        names: of the images of both splits, by `val` and `test`.
    """

    model: Classifier
    min_confidence: float | None
    classes: list[str]
    val: Split
    test: Split
    names: dict[str, list[str]]


def main() -> None:
    """Read models/ and data/processed; write data/predictions, metrics/test.json and five tables in metrics/."""
    params = load_params()
    record = tables.read_json(ROOT / "metrics/run.json", RunRecord).model_dump()
    data = read_data()
    model, val, test = data.model, data.val, data.test
    corrupted = find_source(params.evaluate.corruptions, test, data.classes)
    device, dtype = set_up_device(params.train)
    share_cores()

    model.to(device)
    config = TTAConfig(params.evaluate.batch_size, dtype, params.evaluate.tta, params.evaluate.tta_fraction)
    with mlflow_run.resumed_run(params.tracking, record) as run:
        started = time.perf_counter()
        test_logits = predict_with_progress(model, test.images, config, "test")
        seconds = time.perf_counter() - started
        if len(val.labels):
            val_logits = predict_with_progress(model, val.images, config, "validation")
        else:
            val_logits = None
            print(
                "evaluate: no validation images, so probabilities are not calibrated and there are no prediction sets; "
                "set preprocess.val_fraction above 0 for both"
            )
        predictions = calibrate(model, test_logits, val_logits, val.labels, config)
        corruptions = score_corruptions(model, corrupted, test.labels, config) if corrupted else []

        metrics = collect_metrics(data, predictions, corruptions)
        tables.write_json(ROOT / "metrics/test.json", metrics)
        write_predictions(data, predictions, explain_mistakes(model, test.images, test.labels, predictions.test))
        write_tables(data, predictions, corruptions)
        run.set_tags({"evaluate": params.evaluate.model_dump()})
        scored = metrics.model_dump(exclude_none=True)
        logged = {**scored, "seconds": seconds, "images_per_s": len(test.labels) / seconds}
        run.log_metrics({f"test_{name}": value for name, value in logged.items()})
        run.log_metrics({"evaluate_peak_memory_mib": peak_memory()})
    print(
        f"evaluate: test accuracy {metrics.accuracy:.2%} (95% interval {metrics.accuracy_low:.2%} to "
        f"{metrics.accuracy_high:.2%}), with one view per image {metrics.accuracy_one_view:.2%}"
    )


def read_data() -> Data:
    """Read the model, the validation split and the test split, and check that they fit each other."""
    model, config = load_model(ROOT / "models")
    folder = ROOT / "data/processed"
    stats = arrays.read_stats(folder)
    splits = {
        name: arrays.read_split(folder, name, len(stats.classes), stats.image_shape, memory_map=False)
        for name in ("val", "test")
    }
    names = {name: read_names(folder, name, len(split.labels)) for name, split in splits.items()}
    if (config.classes, config.image_shape) != (stats.classes, stats.image_shape):
        raise UserError(f"{ROOT / 'models/model.json'}: trained on other classes or image sizes; `dvc repro -f train`")
    return Data(model, config.min_confidence, stats.classes, splits["val"], splits["test"], names)


def collect_metrics(data: Data, predictions: Predictions, corruptions: list[CorruptionScore]) -> TestMetrics:
    """Compute metrics/test.json."""
    labels, one_view = data.test.labels, predictions.one_view
    optional: dict[str, float] = {}
    if predictions.temperature is not None and predictions.sets is not None:
        optional = {
            "temperature": predictions.temperature,
            "calibration_error_before": scores.calibration_error(scores.calibration(labels, predictions.before)),
            "prediction_set_coverage": float(predictions.sets[np.arange(len(labels)), labels].mean()),
            "prediction_set_size": float(predictions.sets.sum(1).mean()),
        }
    if data.min_confidence is not None:
        optional["unknown_share"] = float((one_view.max(1) < data.min_confidence).mean())
    if corruptions:
        optional["corrupted_accuracy"] = mean_accuracy(corruptions)
    return TestMetrics(
        **scores.summarize(labels, predictions.test),
        **optional,
        accuracy_one_view=float((one_view.argmax(1) == labels).mean()),
        calibration_error_one_view=scores.calibration_error(scores.calibration(labels, one_view)),
    )


def write_predictions(data: Data, predictions: Predictions, heat_maps: HeatMaps) -> None:
    """Write data/predictions: a table for each split, a row per image, and the heat maps of mistakes."""
    classes = data.classes
    with atomic.atomic_directory(ROOT / "data/predictions") as folder:
        for name, split, rows in (("val", data.val, predictions.val), ("test", data.test, predictions.test)):
            images = zip(data.names[name], split.labels, rows.argmax(1), rows, strict=True)
            tables.write_csv(
                folder / f"{name}.csv",
                ["image", "actual", "predicted", *(f"p_{name}" for name in classes)],
                ((image, classes[actual], classes[best], *row) for image, actual, best, row in images),
            )
        arrays.write_heat_maps(folder, heat_maps)


def write_tables(data: Data, predictions: Predictions, corruptions: list[CorruptionScore]) -> None:
    """Write the tables in metrics/."""
    labels, classes, folder = data.test.labels, data.classes, ROOT / "metrics"
    predicted = predictions.test.argmax(1)
    matrix = scores.confusion(labels, predicted, len(classes))
    tables.write_csv(
        folder / "confusion_matrix.csv",
        ["actual", *classes],
        ([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True)),
    )
    tables.write_rows(folder / "per_class.csv", scores.per_class(labels, predicted, classes, predictions.sets))
    tables.write_rows(folder / "calibration.csv", scores.calibration(labels, predictions.test))
    tables.write_rows(folder / "calibration_before.csv", scores.calibration(labels, predictions.before))
    tables.write_rows(folder / "corruptions.csv", corruptions, CorruptionScore)


if __name__ == "__main__":
    run_stage(main)
