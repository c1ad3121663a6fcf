"""Train the network, keep the weights of the best epoch by validation, and record the run in MLflow."""

from vision.pipeline.stage import peak_memory, run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import operator
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from vision.artifacts.checkpoint import Checkpoint, Checkpoints, open_checkpoints
from vision.artifacts.fingerprint import training_fingerprint
from vision.artifacts.initial_model import check_image_sizes, make_model
from vision.artifacts.trained_model import save_model
from vision.core import flops, loop
from vision.core.augment.resize import resize_images
from vision.core.confidence import fit_min_confidence
from vision.core.config import AugmentConfig, OptimizerConfig, TrainConfig
from vision.core.data import ImageDataset
from vision.core.device import describe_environment, flush_denormals
from vision.core.inference import predict
from vision.core.kernels import select_kernels
from vision.core.models.classifier import Classifier
from vision.core.temperature import fit_temperature
from vision.core.trainer import State
from vision.pipeline.device import set_up_device
from vision.pipeline.errors import UserError
from vision.pipeline.metrics_schemas import HistoryRow, RunRecord, SpeedMetrics, TrainMetrics
from vision.pipeline.params import Params, Train, load_params
from vision.pipeline.paths import ROOT, main_root
from vision.pipeline.training_progress import TrainingProgress
from vision.prediction.mlflow_format import ModelSettings, save_mlflow_model
from vision.search.cpu_shares import share_cores
from vision.search.trial import Trial, current_trial
from vision.storage import arrays, tables
from vision.storage.arrays import Split, Stats
from vision.tracking import mlflow_run
from vision.tracking.run import Run


def main() -> None:
    """Read data/processed; write models/, and train.json, speed.json, run.json and history.csv in metrics/."""
    params = load_params()
    stats, train_split, val_split = read_data()
    device, dtype = set_up_device(params.train)
    flush_denormals()
    share_cores()

    started = time.perf_counter()
    train, val = move_to_device(train_split, device), move_to_device(val_split, device)
    check_patience(params.train, val)
    model, model_config = make_model(params, stats, train.images)
    preparation = time.perf_counter() - started
    check_image_sizes(model, train.images[:1], params.train.progressive_resizing)
    peak = flops.peak_flops(device, dtype)  # after the checks, because it takes a while

    config = train_config(params, dtype)
    kernels = select_kernels(model, config, device).names()
    environment = describe_environment(device, dtype) | kernels

    trial = current_trial(params)
    folder = main_root(ROOT) / "checkpoints" / training_fingerprint(params, device, dtype, kernels)
    with open_checkpoints(folder, params.train.checkpoint_seconds) as checkpoints:
        checkpoint = checkpoints.load_latest()
        if checkpoint:
            print(f"train: resumes from {checkpoint.describe()}", flush=True)
        with mlflow_run.training_run(params, stats, trial.tags, checkpoint.run if checkpoint else None) as run:
            seconds = checkpoint.seconds if checkpoint else preparation
            recorder = Recorder(model, train.images[:1], peak, run, trial, checkpoints, seconds)
            try:
                state = checkpoint.training_state if checkpoint else None
                fit_result = fit_with_progress(model, train, val, config, recorder, state)
            except loop.DivergenceError as error:
                checkpoints.remove()
                trial.end("diverged")
                raise UserError(f"diverged: {error}; {divergence_advice(params.train)}") from None
            calibration = calibrate(model, val, config)
            results = collect_results(fit_result, recorder, environment, calibration)
            save_model(ROOT / "models", model, replace(model_config, min_confidence=calibration.min_confidence))
            write_metrics(results, run.record)
            log_results(run, results, model, train.images[:2], stats.classes)
            trial.end(results.ended, results.metrics.val_accuracy)
        checkpoints.remove()
    print(f"train: {format_results(results)}")


# Before the training.


def read_data() -> tuple[Stats, Split, Split]:
    """Read the training and validation splits into memory."""
    folder = ROOT / "data/processed"
    stats = arrays.read_stats(folder)
    train, val = (
        arrays.read_split(folder, name, len(stats.classes), stats.image_shape, memory_map=False)
        for name in ("train", "val")
    )
    return stats, train, val


def move_to_device(split: Split, device: torch.device) -> ImageDataset:
    """Move a split to the device: images as uint8, labels as int64. On a CPU the images are not copied."""
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    return ImageDataset(images.to(device), labels.to(device, torch.int64))


def check_patience(params: Train, val: ImageDataset) -> None:
    """Refuse early stopping without validation images."""
    if params.patience is not None and not len(val.labels):
        raise UserError(
            "params.yaml: train.patience: needs validation images, but there are none; set it to null, or "
            "preprocess.val_fraction above 0"
        )


def train_config(params: Params, dtype: torch.dtype) -> TrainConfig:
    """Collect the parameters of the training for `vision.core`."""
    stage_only = {"device", "precision", "deterministic", "checkpoint_seconds"}
    return TrainConfig(
        seed=params.seed,
        dtype=dtype,
        freeze_epochs=params.model.freeze_epochs,
        optimizer=OptimizerConfig(**params.train.optimizer.model_dump()),
        augment=AugmentConfig(**params.train.augment.model_dump()),
        **params.train.model_dump(exclude={"optimizer", "augment", *stage_only}),
    )


# During the training.


@dataclass
class Recorder:
    """Callbacks of the training: epochs go to MLflow and to the search's trial, states to the checkpoints.

    Attributes:
        model: the network in training.
        image: a training image [1, H, W, C], to count the FLOPs of an epoch.
        peak_flops: of the device.
        run: the MLflow run.
        trial: the trial of a search, which can end the training early.
        checkpoints: where to save the state.
        seconds_before: duration of the preparation, or of the training until the checkpoint.
    """

    model: Classifier
    image: torch.Tensor
    peak_flops: float
    run: Run
    trial: Trial
    checkpoints: Checkpoints
    seconds_before: float
    started: float = field(default_factory=time.perf_counter)
    epochs: list[loop.EpochMetrics] = field(default_factory=list)
    shares_of_peak: list[float] = field(default_factory=list)

    def on_epoch(self, epoch: loop.EpochMetrics) -> bool:
        """Record an epoch. Return whether the training goes on."""
        # The FLOPs depend on the epoch's image size and on which layers it trained.
        flops_per_image = flops.training_flops(self.model, resize_images(self.image, epoch.image_scale))
        share_of_peak = epoch.images_per_s * flops_per_image / self.peak_flops
        self.epochs.append(epoch)
        self.shares_of_peak.append(share_of_peak)
        self.run.log_metrics(epoch_metrics(epoch, share_of_peak), epoch.epoch)
        return self.trial.report(epoch.epoch, epoch.val_accuracy)

    def on_checkpoint(self, make_state: Callable[[], State]) -> None:
        """Save the state of the training if a checkpoint is due."""
        self.checkpoints.save_if_due(lambda: Checkpoint(make_state(), self.run.record, self.seconds()))

    def seconds(self) -> float:
        """Return the duration of the training so far, in all processes."""
        return self.seconds_before + time.perf_counter() - self.started

    def speed(self) -> SpeedMetrics:
        """Average the speed over the training, weighted by the training time of each epoch."""
        seconds = [epoch.images / epoch.images_per_s for epoch in self.epochs]
        return SpeedMetrics(
            seconds=self.seconds(),
            images_per_s=sum(epoch.images for epoch in self.epochs) / sum(seconds),
            share_of_peak=sum(map(operator.mul, seconds, self.shares_of_peak)) / sum(seconds),
            peak_tflops=self.peak_flops / 1e12,
        )


def fit_with_progress(
    model: Classifier,
    train: ImageDataset,
    val: ImageDataset,
    config: TrainConfig,
    recorder: Recorder,
    state: State | None,
) -> loop.FitResult:
    """Train the model, showing a progress bar and a line per epoch."""
    with closing(TrainingProgress(config.epochs, len(state["history"]) if state else 0)) as progress:

        def on_epoch(epoch: loop.EpochMetrics) -> bool:
            progress.write_epoch(epoch)
            return recorder.on_epoch(epoch)

        callbacks = loop.Callbacks(progress.update, on_epoch, recorder.on_checkpoint)
        return loop.fit(model, train, val, config, callbacks, state)


def divergence_advice(params: Train) -> str:
    """Return which parameters to change after a training has diverged."""
    advice = f"lower train.lr (now {params.lr:g})"
    if params.optimizer.name == "muon":
        advice += f" or train.optimizer.adamw_lr (now {params.optimizer.adamw_lr:g})"
    return advice


def epoch_metrics(epoch: loop.EpochMetrics, share_of_peak: float) -> dict[str, float]:
    """Name the metrics of an epoch for MLflow: `val_loss` is logged as `val/loss`, `lr` as `train/lr`."""
    metrics = {**asdict(epoch), "share_of_peak": share_of_peak}
    return {
        name.replace("_", "/", 1) if name.startswith(("train_", "val_")) else f"train/{name}": value
        for name, value in metrics.items()
        if name != "epoch" and value is not None
    }


# After the training.


@dataclass(frozen=True)
class Results:
    """The results of the training.

    Attributes:
        metrics: the content of metrics/train.json.
        speed: the content of metrics/speed.json.
        history: the rows of metrics/history.csv.
        environment: device, precision, threads, versions, and whether the blocks of the network are fused.
        ended: why the training ended: finished, stopped early or pruned.
    """

    metrics: TrainMetrics
    speed: SpeedMetrics
    history: list[HistoryRow]
    environment: dict[str, object]
    ended: str


@dataclass(frozen=True)
class Calibration:
    """What is fitted on the validation images after the training; None without validation images.

    Attributes:
        temperature: what the model divides its logits by.
        min_confidence: an image whose highest probability is lower is unknown.
    """

    temperature: float | None = None
    min_confidence: float | None = None


def calibrate(model: Classifier, val: ImageDataset, config: TrainConfig) -> Calibration:
    """Set the model's temperature, so that its probabilities are as high as its accuracy."""
    if not len(val.labels):
        print("train: no validation images, so the model's probabilities are not calibrated, and no image is unknown")
        return Calibration()
    logits = predict(model, val.images, max(config.batch_size, 500), config.dtype)
    temperature = fit_temperature(logits, val.labels)
    model.temperature.fill_(temperature)
    return Calibration(temperature, fit_min_confidence(logits / temperature))


def collect_results(
    fit_result: loop.FitResult, recorder: Recorder, environment: dict[str, object], calibration: Calibration
) -> Results:
    """Collect what the stage writes and logs."""
    speed = recorder.speed()
    ended = "finished"
    if fit_result.stopped_early:
        ended = "pruned" if recorder.trial.pruned else "stopped early"
    best = fit_result.history[fit_result.best_epoch - 1]
    metrics = TrainMetrics(
        best_epoch=fit_result.best_epoch,
        epochs=len(fit_result.history),
        stopped_early=fit_result.stopped_early,
        train_loss=best.train_loss,
        train_accuracy=best.train_accuracy,
        **({} if best.val_loss is None else {"val_loss": best.val_loss, "val_accuracy": best.val_accuracy}),
        **{name: value for name, value in asdict(calibration).items() if value is not None},
        parameters=sum(p.numel() for p in recorder.model.parameters()),
    )
    history = [
        HistoryRow.model_validate({name: getattr(epoch, name) for name in HistoryRow.model_fields})
        for epoch in fit_result.history
    ]
    return Results(metrics, speed, history, environment, ended)


def write_metrics(results: Results, record: Mapping[str, Any]) -> None:
    """Write metrics/. Times go to speed.json alone, so that the other files are the same for the same training."""
    tables.write_rows(ROOT / "metrics/history.csv", results.history)
    tables.write_json(ROOT / "metrics/train.json", results.metrics)
    tables.write_json(ROOT / "metrics/speed.json", results.speed)
    run_record = RunRecord.model_validate({**record, "environment": results.environment})
    tables.write_json(ROOT / "metrics/run.json", run_record)


def log_results(run: Run, results: Results, model: Classifier, images: torch.Tensor, classes: list[str]) -> None:
    """Add the results and the model to the MLflow run. The logged model classifies image files."""
    run.set_tags({**results.environment, "parameters": results.metrics.parameters, "ended": results.ended})
    network = torch.nn.Sequential(model.cpu(), torch.nn.Softmax(1)).eval()
    settings = ModelSettings(classes, results.metrics.min_confidence)
    run.log_model(lambda path: save_mlflow_model(path, network, images.cpu().numpy(), settings))
    run.register_model(results.metrics.val_accuracy)
    run.log_metrics(run_metrics(results))  # after the model, so that it gets them, too
    run.log_metrics({"train_peak_memory_mib": peak_memory()})


def run_metrics(results: Results) -> dict[str, float]:
    """Name the metrics of the whole training for MLflow, without the prefix that metrics of epochs have."""
    metrics, speed = results.metrics, results.speed
    named = {
        "best_epoch": metrics.best_epoch,
        "train_seconds": speed.seconds,
        "train_images_per_s": speed.images_per_s,
        "train_share_of_peak": speed.share_of_peak,
        "peak_tflops": speed.peak_tflops,
        "best_val_loss": metrics.val_loss,
        "best_val_accuracy": metrics.val_accuracy,
        "temperature": metrics.temperature,
        "min_confidence": metrics.min_confidence,
    }
    return {name: value for name, value in named.items() if value is not None}


def format_results(results: Results) -> str:
    """Format the most important results as one line."""
    metrics, speed = results.metrics, results.speed
    if metrics.val_accuracy is None:
        weights = "1 epoch" if metrics.epochs == 1 else f"{metrics.epochs} epochs"
    else:
        weights = f"weights of epoch {metrics.best_epoch} of {metrics.epochs}, "
        weights += f"validation accuracy {metrics.val_accuracy:.2%}"
    return (
        f"{weights}; {speed.seconds:.0f} s, "
        f"{speed.images_per_s:,.0f} images/s, {speed.share_of_peak:.0%} of this device's measured peak"
    )


if __name__ == "__main__":
    run_stage(main, resume_hint="`dvc repro` resumes from the last checkpoint")
