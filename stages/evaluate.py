"""Evaluate the model on the test split, which training never uses. The metrics are added to the model's MLflow run."""

from vision.pipeline.stage import peak_memory, run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vision.artifacts.trained_model import load_model
from vision.core import inference
from vision.core.config import TTAConfig
from vision.core.models.classifier import Classifier
from vision.core.temperature import fit_temperature
from vision.evaluation import scores
from vision.evaluation.corruptions.scoring import find_source, mean_accuracy, score_corruptions
from vision.evaluation.heat_maps import explain_mistakes
from vision.evaluation.prediction_sets import prediction_sets
from vision.pipeline.device import set_up_device
from vision.pipeline.errors import UserError
from vision.pipeline.metrics_schemas import CorruptionScore, RunRecord, TestMetrics
from vision.pipeline.params import load_params
from vision.pipeline.paths import ROOT
from vision.pipeline.progress import bar
from vision.search.cpu_shares import share_cores
from vision.storage import arrays, atomic, tables
from vision.storage.arrays import HeatMaps, Split, Stats
from vision.tracking import mlflow_run


def main() -> None:
    """Read models/ and data/processed; write data/predictions, metrics/test.json and five tables in metrics/."""
    params = load_params()
    record = tables.read_json(ROOT / "metrics/run.json", RunRecord).model_dump()
    model, min_confidence, stats, val, test = read_model_and_data()
    corrupted = find_source(params.evaluate.corruptions, test, stats.classes)
    device, dtype = set_up_device(params.train)
    share_cores()

    model.to(device)
    config = TTAConfig(params.evaluate.batch_size, dtype, params.evaluate.tta, params.evaluate.tta_fraction)
    with mlflow_run.resumed_run(params.tracking, record) as run:
        started = time.perf_counter()
        test_logits = predict_with_progress(model, test.images, config, "test")
        seconds = time.perf_counter() - started
        val_logits = predict_with_progress(model, val.images, config, "validation") if len(val.labels) else None
        predictions = calibrate(model, val_logits, test_logits, val.labels, config)
        corruptions = score_corruptions(model, corrupted, test.labels, config) if corrupted else []

        metrics = collect_metrics(test.labels, predictions, min_confidence, corruptions)
        tables.write_json(ROOT / "metrics/test.json", metrics)
        heat_maps = explain_mistakes(model, test.images, test.labels, predictions.probabilities)
        write_predictions(test.labels, predictions, stats, heat_maps)
        write_tables(test.labels, predictions, stats.classes)
        tables.write_rows(ROOT / "metrics/corruptions.csv", corruptions, CorruptionScore)
        run.set_tags({"evaluate": params.evaluate.model_dump()})
        scored = metrics.model_dump(exclude_none=True)
        logged = {**scored, "seconds": seconds, "images_per_s": len(test.labels) / seconds}
        run.log_metrics({f"test_{name}": value for name, value in logged.items()})
        run.log_metrics({"evaluate_peak_memory_mib": peak_memory()})
    print(
        f"evaluate: test accuracy {metrics.accuracy:.2%} (95% interval {metrics.accuracy_low:.2%} to "
        f"{metrics.accuracy_high:.2%}), with one view per image {metrics.accuracy_one_view:.2%}"
    )


def read_model_and_data() -> tuple[Classifier, float | None, Stats, Split, Split]:
    """Read the model with its lowest confidence, and the validation and test splits; check that they fit each other."""
    model, config = load_model(ROOT / "models")
    folder = ROOT / "data/processed"
    stats = arrays.read_stats(folder)
    val, test = (
        arrays.read_split(folder, name, len(stats.classes), stats.image_shape, memory_map=False)
        for name in ("val", "test")
    )
    if (config.classes, config.image_shape) != (stats.classes, stats.image_shape):
        raise UserError(f"{ROOT / 'models/model.json'}: trained on other classes or image sizes; `dvc repro -f train`")
    return model, config.min_confidence, stats, val, test


@dataclass(frozen=True)
class Logits:
    """The logits of a split, float32 [N, classes].

    Attributes:
        one_view: of one view of each image.
        averaged: the mean over the views of `evaluate.tta`.
    """

    one_view: torch.Tensor
    averaged: torch.Tensor


def predict_with_progress(model: Classifier, images: np.ndarray, config: TTAConfig, split: str) -> Logits:
    """Predict with a progress bar.

    Args:
        model: the network.
        images: uint8 [N, H, W, C].
        config: which views to average for which images.
        split: what the images are, for the progress bar.
    """
    on_device = torch.from_numpy(images).to(model.temperature.device)
    views = len(images) + inference.count_extra_views(len(images), config)
    with bar(total=views, unit=" views", description=f"evaluate: {split}") as progress_bar:
        one_view = inference.predict(model, on_device, config.batch_size, config.dtype, progress_bar.update)
        averaged = inference.predict_tta(model, on_device, one_view, config, progress_bar.update)
    return Logits(one_view, averaged)


@dataclass(frozen=True)
class Predictions:
    """The predictions of the test images.

    Attributes:
        probabilities: float32 [N, classes], of averaged views, calibrated.
        one_view: the same of one view of each image, as the model in use predicts them.
        before: probabilities of averaged views before temperature scaling.
        temperature: what averaged logits are divided by; None without validation images.
        sets: conformal prediction sets, bool [N, classes]; None without validation images.
    """

    probabilities: np.ndarray
    one_view: np.ndarray
    before: np.ndarray
    temperature: float | None
    sets: np.ndarray | None


def calibrate(
    model: Classifier, val: Logits | None, test: Logits, val_labels: np.ndarray, config: TTAConfig
) -> Predictions:
    """Fit the temperature of averaged views and the prediction sets on the validation images, if there are any."""
    one_view = to_probabilities(test.one_view)
    logits = test.averaged * model.temperature  # the model has divided by its own temperature
    before = to_probabilities(logits)
    if val is None:
        print(
            "evaluate: no validation images, so probabilities are not calibrated and there are no prediction sets; "
            "set preprocess.val_fraction above 0 for both"
        )
        return Predictions(before, one_view, before, None, None)
    val_averaged = val.averaged * model.temperature
    if inference.count_extra_views(len(val_labels), config):
        temperature = fit_temperature(val_averaged, torch.from_numpy(val_labels).to(val_averaged.device, torch.int64))
    else:  # these are the predictions of the model in use
        temperature = model.temperature.item()
    probabilities = to_probabilities(logits / temperature)
    sets = prediction_sets(val_labels, to_probabilities(val_averaged / temperature), probabilities)
    return Predictions(probabilities, one_view, before, temperature, sets)


def to_probabilities(logits: torch.Tensor) -> np.ndarray:
    """Convert logits to probabilities, float32 [N, classes]."""
    return logits.softmax(1).cpu().numpy()


def collect_metrics(
    labels: np.ndarray,
    predictions: Predictions,
    min_confidence: float | None,
    corruptions: list[CorruptionScore],
) -> TestMetrics:
    """Compute metrics/test.json. An image whose highest probability is below `min_confidence` is unknown."""
    calibration: dict[str, float] = {}
    if predictions.temperature is not None and predictions.sets is not None:
        calibration = {
            "temperature": predictions.temperature,
            "calibration_error_before": scores.calibration_error(scores.calibration(labels, predictions.before)),
            "prediction_set_coverage": float(predictions.sets[np.arange(len(labels)), labels].mean()),
            "prediction_set_size": float(predictions.sets.sum(1).mean()),
        }
    one_view = predictions.one_view
    if min_confidence is not None:
        calibration["unknown_share"] = float((one_view.max(1) < min_confidence).mean())
    return TestMetrics(
        **scores.summarize(labels, predictions.probabilities),
        **calibration,
        accuracy_one_view=float((one_view.argmax(1) == labels).mean()),
        calibration_error_one_view=scores.calibration_error(scores.calibration(labels, one_view)),
        **({"corrupted_accuracy": mean_accuracy(corruptions)} if corruptions else {}),
    )


def write_predictions(labels: np.ndarray, predictions: Predictions, stats: Stats, heat_maps: HeatMaps) -> None:
    """Write data/predictions: a row for each image, named by its file or index, and heat maps of mistakes."""
    classes = stats.classes
    images = stats.test_files or range(len(labels))
    probabilities = predictions.probabilities
    with atomic.atomic_directory(ROOT / "data/predictions") as folder:
        tables.write_csv(
            folder / "test.csv",
            ["image", "actual", "predicted", *(f"p_{name}" for name in classes)],
            (
                (image, classes[actual], classes[best], *row)
                for image, actual, best, row in zip(images, labels, probabilities.argmax(1), probabilities, strict=True)
            ),
        )
        arrays.write_heat_maps(folder, heat_maps)


def write_tables(labels: np.ndarray, predictions: Predictions, classes: Sequence[str]) -> None:
    """Write the tables in metrics/."""
    probabilities = predictions.probabilities
    predicted = probabilities.argmax(1)
    matrix = scores.confusion(labels, predicted, len(classes))
    tables.write_csv(
        ROOT / "metrics/confusion_matrix.csv",
        ["actual", *classes],
        ([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True)),
    )
    tables.write_rows(ROOT / "metrics/per_class.csv", scores.per_class(labels, predicted, classes, predictions.sets))
    tables.write_rows(ROOT / "metrics/calibration.csv", scores.calibration(labels, probabilities))
    tables.write_rows(ROOT / "metrics/calibration_before.csv", scores.calibration(labels, predictions.before))


if __name__ == "__main__":
    run_stage(main)
