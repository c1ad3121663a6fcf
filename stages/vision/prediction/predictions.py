"""The predictions of a list of files, and the CSV file that has them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vision.pipeline import progress
from vision.prediction.file_prediction import predict_files
from vision.prediction.fingerprint import prediction_fingerprint
from vision.prediction.predictor import Predictor
from vision.prediction.resumable_table import ResumableTable, TableSpec, open_table


class Prediction(NamedTuple):
    """The class of an image file, its probability, and whether the image is unlike those of the training."""

    image: str
    class_name: str
    probability: float
    unknown: bool


@dataclass(frozen=True)
class Predictions:
    """The predictions of all files that could be read, in the order of the files; and why others could not be."""

    rows: list[Prediction]
    errors: dict[str, str]


def open_csv(
    path: Path | None, predictor: Predictor, files: Sequence[str]
) -> AbstractContextManager[ResumableTable | None]:
    """Open the CSV file of the predictions; it appears at `path` after the block. Without a path there is none.

    Raises:
        UserError: another process writes the file, or `path` is a folder.
        OSError: the file cannot be written; `filename` is `path`.
    """
    if path is None:
        return nullcontext()
    header = ["image", "class", "probability", "unknown", *(f"p_{name}" for name in predictor.classes)]
    return open_table(path, TableSpec(header, files, prediction_fingerprint(predictor, files)))


def predict_all(predictor: Predictor, files: Sequence[str], table: ResumableTable | None) -> Predictions:
    """Classify files with a progress bar.

    Args:
        predictor: the model.
        files: paths of image files.
        table: gets a row for each image; files that are done in it are not classified again.
    """
    rows: list[Prediction] = []
    errors: dict[str, str] = {}
    done = 0
    if table is not None:
        rows = [
            Prediction(image, name, float(value), unknown == "true")
            for image, name, value, unknown, *_ in table.read_rows()
        ]
        errors, done = dict(table.errors), table.done
    with progress.bar(len(files), " images", "predict", initial=done, delay=1) as bar:
        for batch in predict_files(predictor, files, done, bar.update):
            errors |= batch.errors
            best = batch.probabilities.max(1)
            names = [predictor.classes[index] for index in batch.probabilities.argmax(1)]
            unknown = [predictor.is_unknown(probability) for probability in best]
            rows += map(Prediction, batch.images, names, best.tolist(), unknown)
            if table is not None:
                flags = ["true" if flag else "false" for flag in unknown]
                cells = zip(batch.images, names, best, flags, *batch.probabilities.T, strict=True)
                table.append(batch.end, cells, batch.errors)
    return Predictions(rows, errors)
