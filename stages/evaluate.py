"""Evaluate the model on the test split, which training never uses. The metrics are added to the model's MLflow run."""

from vision.pipeline.stage import peak_memory, run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import time

import numpy as np
import torch

from vision.artifacts import trained_model
from vision.core import inference
from vision.core.config import TTAConfig
from vision.core.device import compute_deterministically, keep_freed_memory, select_device
from vision.evaluation import scores
from vision.pipeline.errors import UserError
from vision.pipeline.params import Evaluate, load_params
from vision.pipeline.paths import ROOT
from vision.pipeline.progress import bar
from vision.pipeline.schemas import RunRecord, TestMetrics
from vision.search.cpu_shares import share_cores
from vision.storage import arrays, atomic, tables
from vision.storage.arrays import Stats
from vision.tracking import mlflow_run


def main() -> None:
    """models/, data/processed -> data/predictions, metrics/test.json and three tables in metrics/."""
    params = load_params()
    settings = params.evaluate
    record = tables.read_json(ROOT / "metrics/run.json", RunRecord).model_dump()
    model, description = trained_model.load(ROOT / "models")
    stats = arrays.read_stats(ROOT / "data/processed")
    test = arrays.read_split(ROOT / "data/processed", "test", len(stats.classes), stats.image_shape, memory_map=False)
    if (description.classes, description.image_shape) != (stats.classes, stats.image_shape):
        raise UserError(f"{ROOT / 'models/model.json'}: trained on other classes or image sizes; `dvc repro -f train`")
    if params.train.deterministic:
        compute_deterministically()
    try:
        device, dtype = select_device(params.train.device, params.train.precision)
    except ValueError as error:
        raise UserError(f"params.yaml: {error}") from None
    keep_freed_memory()
    share_cores()

    model.to(device)
    with mlflow_run.resumed_run(params.tracking, record) as run:
        started = time.perf_counter()
        images = torch.from_numpy(test.images).to(device)
        one_view, logits = logits_with_progress(model, images, dtype, settings)
        probabilities = logits.softmax(1).cpu().numpy()
        seconds = time.perf_counter() - started

        metrics = TestMetrics(
            **scores.summarize(test.labels, probabilities),
            accuracy_one_view=float((one_view.argmax(1).cpu().numpy() == test.labels).mean()),
        )
        tables.write_json(ROOT / "metrics/test.json", metrics)
        write_tables(test.labels, probabilities, stats)
        run.set_tags({"evaluate": settings.model_dump()})
        logged = {**metrics.model_dump(), "seconds": seconds, "images_per_s": len(images) / seconds}
        run.log_metrics({f"test/{name}": value for name, value in logged.items()})
        run.log_metrics({"evaluate/peak_memory_mib": peak_memory()})
    print(f"evaluate: test accuracy {metrics.accuracy:.2%}, with one view per image {metrics.accuracy_one_view:.2%}")


def logits_with_progress(
    model: torch.nn.Module, images: torch.Tensor, dtype: torch.dtype, settings: Evaluate
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, classes] of one view of each image, and with further views averaged as the settings say."""
    config = TTAConfig(settings.batch_size, dtype, settings.tta, settings.tta_fraction)
    total = len(images) + inference.count_extra_views(len(images), config)
    with bar(total=total, unit=" views", description="evaluate") as progress_bar:
        one_view = inference.predict(model, images, config.batch_size, dtype, progress_bar.update)
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
