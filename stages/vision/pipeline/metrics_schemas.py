"""The content of each file in metrics/, one model per file or per row of a table.

The stage that writes a file constructs the model, and the stages that read it validate against it. A field that is not
set is left out of a JSON file; a field that is None is `null` in JSON and an empty cell in CSV.

data/processed/stats.json is described by `arrays.Stats`, models/model.json by `artifacts.trained_model.ModelConfig`.
"""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vision.pipeline.validation import Count, Finite, Line, NonNegative, NonNegativeCount, Positive, Share

_EmptyAsNone = BeforeValidator(lambda cell: None if cell == "" else cell)


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class SplitCounts(_Schema):
    """The number of images in each split."""

    train: NonNegativeCount
    val: NonNegativeCount
    test: NonNegativeCount


class DatasetMetrics(_Schema):
    """metrics/dataset.json: the number of images in each split, in total and by class."""

    classes: Count
    train: NonNegativeCount
    val: NonNegativeCount
    test: NonNegativeCount
    by_class: dict[str, SplitCounts]


class TrainMetrics(_Schema):
    """metrics/train.json: the best epoch. Losses are in nats; `val_*` are absent if there is no validation split.

    `val_loss` is that of the training, before the logits are divided by the `temperature`. An image whose highest
    probability is below `min_confidence` is unknown.
    """

    best_epoch: Count
    epochs: Count
    stopped_early: bool
    train_loss: Finite
    train_accuracy: Share
    val_loss: Finite | None = None
    val_accuracy: Share | None = None
    temperature: Positive | None = None
    min_confidence: Share | None = None
    parameters: Count


class SpeedMetrics(_Schema):
    """metrics/speed.json: how fast the training was. `share_of_peak` is the part of the measured `peak_tflops`."""

    seconds: NonNegative
    images_per_s: Positive
    share_of_peak: NonNegative
    peak_tflops: Positive


class TestMetrics(_Schema):
    """metrics/test.json: the scores on the test split, computed by `evaluation`.

    `accuracy_low` and `accuracy_high` are the ends of the 95% confidence interval. `temperature` is what the averaged
    logits of the views are divided by, and `calibration_error_before` is the error without it. `unknown_share` is the
    share of images whose highest probability, of one view, is below the model's `min_confidence`. All these, and the
    prediction sets, are absent if there is no validation split.
    `corrupted_accuracy` is the mean of metrics/corruptions.csv. It is absent if `evaluate.corruptions` is off.
    """

    accuracy: Share
    accuracy_low: Share
    accuracy_high: Share
    top5_accuracy: Share
    cross_entropy: Finite
    precision_macro: Share
    recall_macro: Share
    f1_macro: Share
    calibration_error: Share
    calibration_error_before: Share | None = None
    temperature: Positive | None = None
    prediction_set_coverage: Share | None = None
    prediction_set_size: NonNegative | None = None
    unknown_share: Share | None = None
    accuracy_one_view: Share
    calibration_error_one_view: Share
    corrupted_accuracy: Share | None = None


class AuditMetrics(_Schema):
    """audit/metrics.json, which `tools/audit.py` writes. It is not in metrics/, whose files all belong to dvc.lock.

    `label_errors` are among `labels_checked` training and validation labels; both are absent without predictions of
    folds. A near-duplicate is an image with at least one near-duplicate; a group is connected by pairs.
    `class_imbalance` is the number of training images of the largest class, divided by that of the smallest.
    `accuracy_without_duplicates` is that of the test images without a near-duplicate in the training split; it is
    absent if there are none.
    """

    images: Count
    labels_checked: Count | None = None
    label_errors: NonNegativeCount | None = None
    near_duplicates: NonNegativeCount
    near_duplicate_pairs: NonNegativeCount
    near_duplicate_groups: NonNegativeCount
    pairs_across_splits: NonNegativeCount
    pairs_of_different_classes: NonNegativeCount
    class_imbalance: Positive
    test_images: Count
    test_images_without_duplicates: NonNegativeCount
    accuracy: Share
    accuracy_without_duplicates: Share | None = None


class HistoryRow(_Schema):
    """A row of metrics/history.csv: one epoch. Fields as in `core.loop.EpochMetrics`."""

    epoch: Count
    lr: NonNegative
    image_scale: Positive
    images: Count
    train_loss: Finite
    train_accuracy: Share
    val_loss: Annotated[Finite | None, _EmptyAsNone]
    val_accuracy: Annotated[Share | None, _EmptyAsNone]


class ClassScores(_Schema):
    """A row of metrics/per_class.csv: the scores of one class on the test split.

    `recall_low` and `recall_high` are the ends of the 95% confidence interval; they are 0 and 1 without images.
    `prediction_set_size` is the mean over the images of the class, or None.
    """

    name: str = Field(validation_alias="class", serialization_alias="class")
    precision: Share
    recall: Share
    recall_low: Share
    recall_high: Share
    f1: Share
    images: NonNegativeCount
    prediction_set_size: Annotated[NonNegative | None, _EmptyAsNone] = None


class CalibrationBin(_Schema):
    """The test images with a confidence in (confidence_from, confidence_to].

    A row of metrics/calibration.csv, or of metrics/calibration_before.csv, which has the confidences before temperature
    scaling.
    """

    confidence_from: Share
    confidence_to: Share
    images: Count
    confidence: Share
    accuracy: Share


class CorruptionScore(_Schema):
    """A row of metrics/corruptions.csv: the accuracy of one view of each test image with one corruption."""

    corruption: Annotated[Line, Field(pattern=r"^[a-z_]+$")]
    severity: Annotated[int, Field(ge=1, le=5)]
    images: Count
    accuracy: Share


class Environment(_Schema):
    """The device and software that a model was trained with. The report lists further fields as they are."""

    model_config = ConfigDict(extra="allow")

    device: Line
    device_name: str
    precision: Line
    threads: Count | None = None
    fused_blocks: bool | None = None
    weight_gradients: Line | None = None
    cores: Count | None = None
    python: str | None = None
    versions: dict[str, str]


class MlflowRecord(_Schema):
    """The MLflow run of a model, and where its code comes from."""

    run_id: Annotated[str, Field(pattern=r"^\w+$", max_length=100)]
    experiment_id: Annotated[str, Field(pattern=r"^\w+$", max_length=100)]
    tracking_uri: Line
    page: Annotated[Line, Field(pattern=r"^https?://")]
    name: Line
    commit: str
    dirty: str
    apply: str


class RunRecord(_Schema):
    """metrics/run.json: the MLflow run and TensorBoard folder of a model (None if disabled), and its environment."""

    mlflow: MlflowRecord | None
    tensorboard: Annotated[Line, Field(pattern=r"^tensorboard/[^/]+$")] | None
    environment: Environment
