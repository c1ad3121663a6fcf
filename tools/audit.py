"""Audit the data: label errors, near-duplicates, outliers and class balance.

Run it after `dvc repro`. It needs the trained model, and writes the folder
audit/: a page to look at the findings (index.html), the findings as tables
(label_errors.csv, duplicates.csv, outliers.csv), and their numbers
(metrics.json). The page and the numbers are added to the model's MLflow run.

Label errors are found by models that were not trained on the image, so they
need experiments that cross-validate. Run these first:
    dvc exp run --queue -S preprocess.folds=5 -S 'preprocess.fold=range(5)'
    dvc exp run --run-all

example:
    python tools/audit.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

from vision.pipeline.stage import run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import argparse

import dvc.api
import numpy as np
import torch
from dvc.exceptions import DvcException

from compare import PARAMETERS, row_name, select_finished
from vision.artifacts.trained_model import load_model
from vision.audit.data import AuditData, read_data
from vision.audit.duplicates import find_groups
from vision.audit.findings import Findings, Labels, count_findings
from vision.audit.fold_predictions import find_folds, join_folds
from vision.audit.label_errors import find_label_errors
from vision.audit.page import render
from vision.audit.similarity import search
from vision.audit.tables import write_tables
from vision.core.models.classifier import Classifier
from vision.pipeline.device import set_up_device
from vision.pipeline.errors import UserError
from vision.pipeline.metrics_schemas import AuditMetrics, RunRecord
from vision.pipeline.params import load_params
from vision.pipeline.paths import ROOT
from vision.report.results import read_predictions
from vision.storage import tables
from vision.storage.atomic import atomic_directory
from vision.tracking import mlflow_run

OUTPUT = ROOT / "audit"
VAL_PREDICTIONS = "data/predictions/val.csv"
FOLDS_HINT = "`dvc exp run --queue -S preprocess.folds=5 -S 'preprocess.fold=range(5)'`, then `dvc exp run --run-all`"


def main() -> None:
    """Audit the images of data/processed with the model of models/; write audit/."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = load_params()
    record = tables.read_json(ROOT / "metrics/run.json", RunRecord).model_dump()
    model, data = read_model_and_data()
    correct = read_correct(data)
    labels = check_labels(data)
    device, dtype = set_up_device(params.train)

    similarity = search(model.to(device), torch.from_numpy(data.images), params.evaluate.batch_size, dtype)
    groups = find_groups(similarity.pairs, len(data.labels))
    findings = Findings(data, similarity.pairs, groups, similarity.outliers, labels, correct)
    metrics = count_findings(findings)
    write_audit(findings, metrics)
    with mlflow_run.resumed_run(params.tracking, record) as run:
        numbers = metrics.model_dump(exclude_none=True)
        run.log_metrics({f"audit_{name}": value for name, value in numbers.items()})
        run.log_artifact(OUTPUT / "index.html", "audit")
        run.log_artifact(OUTPUT / "metrics.json", "audit")
    print_summary(metrics)


def read_model_and_data() -> tuple[Classifier, AuditData]:
    """Read the model and the images, and check that they fit each other."""
    model, config = load_model(ROOT / "models")
    data = read_data(ROOT / "data/processed")
    if (config.classes, config.image_shape) != (data.classes, list(data.images.shape[1:])):
        raise UserError(f"{ROOT / 'models/model.json'}: trained on other classes or image sizes; run `dvc repro`")
    return model, data


def read_correct(data: AuditData) -> np.ndarray:
    """Whether the model is right about each test image, bool [T]."""
    path = ROOT / "data/predictions/test.csv"
    predictions = read_predictions(path, list(data.classes))
    if not np.array_equal(predictions.actual, data.labels[data.indices("test")]):
        raise UserError(f"{path}: does not match data/processed; run `dvc repro`")
    return predictions.actual == predictions.predicted


def check_labels(data: AuditData) -> Labels | None:
    """Find label errors by the experiments that cross-validate; None and a line if there are none."""
    try:
        _, _, *experiments = dvc.api.exp_show(repo=str(ROOT))
    except DvcException as error:
        print(f"audit: label errors are not searched: {error}", flush=True)
        return None
    folds = find_folds(select_finished(experiments)[0], PARAMETERS)
    if not folds:
        print(f"audit: label errors are not searched: no experiments have all folds; run {FOLDS_HINT}", flush=True)
        return None
    predictions = join_folds({row_name(row): read_val_predictions(row_name(row), row["rev"]) for row in folds}, data)
    print(f"audit: label errors by the folds {', '.join(map(row_name, folds))}", flush=True)
    errors = find_label_errors(data.labels[predictions.indices], predictions.probabilities)
    return Labels(predictions.indices, predictions.probabilities, errors)


def read_val_predictions(name: str, revision: str) -> str:
    """The content of data/predictions/val.csv of an experiment.

    Raises:
        UserError: DVC's cache does not have the file.
    """
    try:
        return dvc.api.read(VAL_PREDICTIONS, repo=str(ROOT), rev=revision)
    except (OSError, DvcException):
        raise UserError(
            f"{name}: {VAL_PREDICTIONS} is not in DVC's cache; get it by `dvc pull`, or run the folds again"
        ) from None


def write_audit(findings: Findings, metrics: AuditMetrics) -> None:
    """Write the folder audit/."""
    page = render(findings)
    with atomic_directory(OUTPUT) as folder:
        write_tables(folder, findings)
        tables.write_json(folder / "metrics.json", metrics)
        (folder / "index.html").write_text(page, encoding="utf-8")


def print_summary(metrics: AuditMetrics) -> None:
    """Print the numbers."""
    if metrics.label_errors is not None:
        print(f"{metrics.label_errors:,} of {metrics.labels_checked:,} labels are probably wrong")
    print(f"{metrics.near_duplicates:,} of {metrics.images:,} images have a near-duplicate")
    repeated = metrics.test_images - metrics.test_images_without_duplicates
    print(f"{repeated:,} of {metrics.test_images:,} test images have one in the training split")
    if metrics.accuracy_without_duplicates is not None:
        without = metrics.accuracy_without_duplicates
        print(f"test accuracy {metrics.accuracy:.2%}, without these {without:.2%}")
    print(f"wrote {OUTPUT / 'index.html'}")


if __name__ == "__main__":
    run_stage(main, resume_hint="the same command starts again")
