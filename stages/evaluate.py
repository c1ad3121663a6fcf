"""Evaluate the model on the test split, which training never uses. The metrics are added to the model's MLflow run."""

from vision.pipeline.stage import peak_memory, run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import time

import numpy as np
import torch

from vision.artifacts.trained_model import load_model
from vision.core import inference
from vision.core.config import TTAConfig
from vision.core.models.classifier import Classifier
from vision.evaluation import scores
from vision.pipeline.device import set_up_device
from vision.pipeline.errors import UserError
from vision.pipeline.metrics_schemas import RunRecord, TestMetrics
from vision.pipeline.params import load_params
from vision.pipeline.paths import ROOT
from vision.pipeline.progress import bar
from vision.search.cpu_shares import share_cores
from vision.storage import arrays, atomic, tables
from vision.storage.arrays import Split, Stats
from vision.tracking import mlflow_run


def main() -> None:
    """Read models/ and data/processed; write data/predictions, metrics/test.json and three tables in metrics/."""
    params = load_params()
    record = tables.read_json(ROOT / "metrics/run.json", RunRecord).model_dump()
    model, stats, test = read_model_and_data()
    device, dtype = set_up_device(params.train)
    share_cores()

    model.to(device)
    config = TTAConfig(params.evaluate.batch_size, dtype, params.evaluate.tta, params.evaluate.tta_fraction)
    with mlflow_run.resumed_run(params.tracking, record) as run:
        started = time.perf_counter()
        one_view, logits = predict_with_progress(model, torch.from_numpy(test.images).to(device), config)
        probabilities = logits.softmax(1).cpu().numpy()
        seconds = time.perf_counter() - started

        metrics = TestMetrics(
            **scores.summarize(test.labels, probabilities),
            accuracy_one_view=float((one_view.argmax(1).cpu().numpy() == test.labels).mean()),
        )
        tables.write_json(ROOT / "metrics/test.json", metrics)
        write_tables(test.labels, probabilities, stats)
        run.set_tags({"evaluate": params.evaluate.model_dump()})
        logged = {**metrics.model_dump(), "seconds": seconds, "images_per_s": len(test.labels) / seconds}
        run.log_metrics({f"test_{name}": value for name, value in logged.items()})
        run.log_metrics({"evaluate_peak_memory_mib": peak_memory()})
    print(f"evaluate: test accuracy {metrics.accuracy:.2%}, with one view per image {metrics.accuracy_one_view:.2%}")


def read_model_and_data() -> tuple[Classifier, Stats, Split]:
    """Read the model and the test split, and check that they fit each other."""
    model, config = load_model(ROOT / "models")
    folder = ROOT / "data/processed"
    stats = arrays.read_stats(folder)
    test = arrays.read_split(folder, "test", len(stats.classes), stats.image_shape, memory_map=False)
    if (config.classes, config.image_shape) != (stats.classes, stats.image_shape):
        raise UserError(f"{ROOT / 'models/model.json'}: trained on other classes or image sizes; `dvc repro -f train`")
    return model, stats, test


def predict_with_progress(
    model: Classifier, images: torch.Tensor, config: TTAConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict with a progress bar.

    Args:
        model: on the device of the images.
        images: uint8 [N, H, W, C].
        config: which views to average for which images.

    Returns:
        Logits [N, classes] of one view of each image, and logits averaged over the views.
    """
    views = len(images) + inference.count_extra_views(len(images), config)
    with bar(total=views, unit=" views", description="evaluate") as progress_bar:
        one_view = inference.predict(model, images, config.batch_size, config.dtype, progress_bar.update)
        logits = inference.predict_tta(model, images, one_view, config, progress_bar.update)
    return one_view, logits


def write_tables(labels: np.ndarray, probabilities: np.ndarray, stats: Stats) -> None:
    """Write data/predictions (a row per image, named by its file or index) and the tables computed from it."""
    classes = stats.classes
    images = stats.test_files or range(len(labels))
    predicted = probabilities.argmax(1)
    with atomic.atomic_directory(ROOT / "data/predictions") as folder:
        tables.write_csv(
            folder / "test.csv",
            ["image", "actual", "predicted", *(f"p_{name}" for name in classes)],
            (
                (image, classes[actual], classes[best], *row)
                for image, actual, best, row in zip(images, labels, predicted, probabilities, strict=True)
            ),
        )
    matrix = scores.confusion(labels, predicted, len(classes))
    tables.write_csv(
        ROOT / "metrics/confusion_matrix.csv",
        ["actual", *classes],
        ([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True)),
    )
    tables.write_rows(ROOT / "metrics/per_class.csv", scores.per_class(labels, predicted, classes))
    tables.write_rows(ROOT / "metrics/calibration.csv", scores.calibration(labels, probabilities))


if __name__ == "__main__":
    run_stage(main)
