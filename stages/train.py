"""Fit the network to the training split and keep the best weights by validation; the run is recorded in MLflow."""

from vision.pipeline.stage import peak_memory, run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import operator
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from vision.artifacts import fingerprint, pretrained, trained_model
from vision.artifacts.checkpoint import checkpoints
from vision.core import flops, loop
from vision.core.augment.resize import resize_images
from vision.core.config import AugmentConfig, OptimizerConfig, TrainConfig
from vision.core.data import ImageDataset
from vision.core.device import (
    compute_deterministically,
    describe_environment,
    flush_denormals,
    keep_freed_memory,
    select_device,
)
from vision.core.models import classifier
from vision.core.trainer import State
from vision.pipeline.errors import UserError, resource_hint
from vision.pipeline.params import Params, load_params
from vision.pipeline.paths import ROOT, main_root
from vision.pipeline.progress import bar
from vision.pipeline.schemas import HistoryRow, RunRecord, SpeedMetrics, TrainMetrics
from vision.search.cpu_shares import share_cores
from vision.search.trial import current_trial
from vision.storage import arrays, tables
from vision.storage.arrays import Split, Stats
from vision.tracking import mlflow_run

Row = dict[str, float | None]
"""An epoch's figures by name."""


def main() -> None:
    """data/processed -> models/, metrics/train.json, speed.json, run.json and history.csv."""
    params = load_params()
    stats = arrays.read_stats(ROOT / "data/processed")
    splits = [
        arrays.read_split(ROOT / "data/processed", name, len(stats.classes), stats.image_shape, memory_map=False)
        for name in ("train", "val")
    ]
    if params.train.deterministic:
        compute_deterministically()
    try:
        device, dtype = select_device(params.train.device, params.train.precision)
    except ValueError as error:
        raise UserError(f"params.yaml: {error}") from None
    keep_freed_memory()
    flush_denormals()
    share_cores()

    started = time.perf_counter()
    train, val = (examples(split, device) for split in splits)
    if params.train.patience is not None and not len(val.labels):
        raise UserError(
            "params.yaml: train.patience: watches the validation figures, but there are no validation images; "
            "set it to null, or preprocess.val_fraction higher"
        )
    torch.manual_seed(params.seed)
    model, description = network(params, stats)
    model.to(device)
    model.initialize_from(train.images)
    if params.model.weights is not None:
        pretrained.start_from(model, params.model.name, params.model.weights)
    prepared = time.perf_counter() - started
    for scale in params.train.progressive_resizing:
        check(model, resize_images(train.images[:1], scale), scale)
    peak = flops.peak_flops(device, dtype)  # takes a while, so after all checks

    trial = current_trial(params)
    folder = main_root(ROOT) / "checkpoints" / fingerprint.of_training(params, device, dtype)
    with checkpoints(folder, params.train.checkpoint_seconds) as saved:
        before = saved.latest()
        if before:
            print(f"train: {place(before)}", flush=True)
        with mlflow_run.training_run(params, stats, trial.tags, before["run"] if before else None) as run:
            rows: list[Row] = []

            def on_epoch(epoch: loop.EpochMetrics) -> bool:
                # Of the epoch's size of images, and of the layers that it trained.
                used = flops.training_flops(model, resize_images(train.images[:1], epoch.image_scale))
                rows.append({**asdict(epoch), "share_of_peak": epoch.images_per_s * used / peak})
                run.log_epoch(rows[-1])
                return trial.report(epoch.epoch, epoch.val_accuracy)

            def on_checkpoint(state: Callable[[], State]) -> None:
                saved.offer(lambda: {"fit": state(), "run": run.record, "seconds": seconds(), "saved": time.time()})

            def seconds() -> float:
                """What training has taken so far, in all processes."""
                return (before["seconds"] if before else prepared) + time.perf_counter() - started

            started = time.perf_counter()
            try:
                going_on = before["fit"] if before else None
                fitted = fit_with_progress(model, train, val, params, dtype, on_epoch, on_checkpoint, going_on)
            except loop.DivergenceError as error:
                saved.clear()
                trial.end("diverged")
                advice = f"lower train.lr (now {params.train.lr:g})"
                if params.train.optimizer.name == "muon":
                    advice += f" or train.optimizer.adamw_lr (now {params.train.optimizer.adamw_lr:g})"
                raise UserError(f"diverged: {error} is not a finite number; {advice}") from None
            summary = summarize(fitted) | {"parameters": sum(p.numel() for p in model.parameters())}
            pace = {"seconds": seconds(), **mean_pace(fitted, rows), "peak_tflops": peak / 1e12}
            found = describe_environment(device, dtype)
            trained_model.save(ROOT / "models", model, description)
            write_metrics(summary, pace, rows, {**run.record, "environment": found})
            ended = "finished"
            if fitted.stopped_early:
                ended = "pruned" if trial.pruned else "stopped early"
            run.set_tags({**found, "parameters": summary["parameters"], "ended": ended})
            run.log_metrics(headlines(summary, pace))
            probabilities = torch.nn.Sequential(model.cpu(), torch.nn.Softmax(1)).eval()
            run.log_model(probabilities, train.images[:2].cpu().numpy(), stats.classes)
            run.register_model(summary.get("val_accuracy"))
            run.log_metrics({"train/peak_memory_mib": peak_memory()})
            trial.end(ended, summary.get("val_accuracy"))
        saved.clear()
    held_out = f", validation accuracy {summary['val_accuracy']:.2%}" if "val_accuracy" in summary else ""
    print(
        f"train: best epoch {fitted.best_epoch} of {len(rows)}{held_out}; {pace['seconds']:.0f} s, "
        f"{pace['images_per_s']:,.0f} images/s, {pace['share_of_peak']:.0%} of this device's measured peak"
    )


def place(before: State) -> str:
    """Where a training goes on."""
    state = before["fit"]
    epoch, step = len(state["history"]), state["meter"]["step"]
    where = f"step {step} of epoch {epoch + 1}" if len(state["remaining"]) else f"the end of epoch {epoch}"
    return f"goes on from {where}, saved {time.time() - before['saved']:.0f} s ago"


def network(params: Params, stats: Stats) -> tuple[classifier.Classifier, trained_model.Description]:
    """Make the network for this data, its weights random, and its description."""
    settings = params.model
    image_size = settings.image_size
    if image_size is None and settings.weights == pretrained.PRETRAINED:
        image_size = pretrained.pretrained_size(settings.name)
    description = trained_model.Description(
        name=settings.name,
        options=getattr(settings, settings.family).model_dump(),
        classes=stats.classes,
        image_shape=stats.image_shape,
        mean=stats.mean,
        std=stats.std,
        image_size=image_size,
    )
    try:
        model = trained_model.build(description)
    except ValueError as error:
        raise UserError(f"params.yaml: {error}") from None
    if params.train.optimizer.name == "muon" and not model.has_normalization_layers:
        raise UserError(
            "params.yaml: train.optimizer.name: muon keeps the filters at one norm, so it is for networks that "
            f"normalize after them, and {settings.name} does not; choose sgd, adam or adamw, with a train.lr for it"
        )
    return model, description


def check(model: classifier.Classifier, image: torch.Tensor, scale: float) -> None:
    """Refuse images, shrunk to `scale`, that the network is too deep for or not made for."""
    try:
        flops.training_flops(model, image)
    except (RuntimeError, AssertionError) as error:  # a vision transformer asserts
        if resource_hint(error):  # it is not the image
            raise
        height, width = image.shape[1:3]
        raise UserError(
            f"params.yaml: train.progressive_resizing: the network cannot take images of {height}x{width} "
            f"pixels, {scale:g} of their size ({str(error).splitlines()[0]}); use [1.0], or raise model.image_size"
        ) from None


def examples(split: Split, device: torch.device) -> ImageDataset:
    """Bring a split to the device: images as uint8, labels as int64."""
    images, labels = map(torch.from_numpy, (split.images, split.labels))  # on a CPU these are the arrays' memory
    return ImageDataset(images.to(device), labels.to(device, torch.int64))


def fit_with_progress(
    model: torch.nn.Module,
    train: ImageDataset,
    val: ImageDataset,
    params: Params,
    dtype: torch.dtype,
    on_epoch: Callable[[loop.EpochMetrics], bool],
    on_checkpoint: Callable[[Callable[[], State]], None],
    state: State | None,
) -> loop.FitResult:
    """Call `fit.fit`, showing a bar and a line an epoch."""
    config = train_config(params, dtype)
    # In per cent: images of an epoch at full size take longer than those of the first ones.
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    behind = len(state["history"]) if state else 0
    with bar(total=100, unit="%", description="train", bar_format=form) as progress_bar:

        def show(progress: loop.Progress) -> None:
            progress_bar.set_postfix_str(
                f"epoch {progress.epoch}/{config.epochs}, loss {progress.loss:.3f}, "
                f"accuracy {progress.accuracy:.1%}, {progress.images_per_s:,.0f} images/s",
                refresh=False,
            )
            progress_bar.update(100 * progress.fraction - progress_bar.n)

        def show_and_pass_on(epoch: loop.EpochMetrics) -> bool:
            validated = ""
            if epoch.val_loss is not None:
                validated = f"; val loss {epoch.val_loss:.4f}, accuracy {epoch.val_accuracy:.2%}"
            progress_bar.write(
                f"epoch {epoch.epoch:3d}: train loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}"
                f"{validated}; {epoch.seconds:.1f} s, {epoch.images_per_s:,.0f} images/s"
                f"{' (trained earlier)' if epoch.epoch <= behind else ''}"
            )
            return on_epoch(epoch)

        callbacks = loop.Callbacks(show, show_and_pass_on, on_checkpoint)
        return loop.fit(model, train, val, config, callbacks, state)


def train_config(params: Params, dtype: torch.dtype) -> TrainConfig:
    """What params.yaml says of the training, for the core."""
    not_of_the_core = {"device", "precision", "deterministic", "checkpoint_seconds", "optimizer", "augment"}
    return TrainConfig(
        seed=params.seed,
        dtype=dtype,
        freeze_epochs=params.model.freeze_epochs,
        optimizer=OptimizerConfig(**params.train.optimizer.model_dump()),
        augment=AugmentConfig(**params.train.augment.model_dump()),
        **params.train.model_dump(exclude=not_of_the_core),
    )


def summarize(fitted: loop.FitResult) -> dict[str, float]:
    """Collect the content of metrics/train.json, except the number of parameters."""
    best = asdict(fitted.history[fitted.best_epoch - 1])
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return {
        "best_epoch": fitted.best_epoch,
        "epochs": len(fitted.history),
        "stopped_early": fitted.stopped_early,
        **{name: best[name] for name in names if best[name] is not None},
    }


def mean_pace(fitted: loop.FitResult, rows: list[Row]) -> dict[str, float]:
    """Average images_per_s and share_of_peak over the training, weighted by the training time of each epoch."""
    trained = [epoch.images / epoch.images_per_s for epoch in fitted.history]
    shares = [row["share_of_peak"] or 0.0 for row in rows]
    return {
        "images_per_s": sum(epoch.images for epoch in fitted.history) / sum(trained),
        "share_of_peak": sum(map(operator.mul, trained, shares)) / sum(trained),
    }


def write_metrics(summary: dict[str, float], pace: dict[str, float], rows: list[Row], run: dict[str, Any]) -> None:
    """Write metrics/. Times go to speed.json alone, so that the other files are the same for the same training."""
    history = [HistoryRow.model_validate({name: row[name] for name in HistoryRow.model_fields}) for row in rows]
    tables.write_rows(ROOT / "metrics/history.csv", history)
    tables.write_json(ROOT / "metrics/train.json", TrainMetrics.model_validate(summary))
    tables.write_json(ROOT / "metrics/speed.json", SpeedMetrics.model_validate(pace))
    tables.write_json(ROOT / "metrics/run.json", RunRecord.model_validate(run))


def headlines(summary: dict[str, float], pace: dict[str, float]) -> dict[str, float]:
    """The figures of a whole training as the run's metrics, which curves by epoch go by other names beside."""
    best = {f"val/best_{name}": summary[f"val_{name}"] for name in ("loss", "accuracy") if f"val_{name}" in summary}
    return {
        "train/best_epoch": summary["best_epoch"],
        "train/total_seconds": pace["seconds"],
        "train/mean_images_per_s": pace["images_per_s"],
        "train/mean_share_of_peak": pace["share_of_peak"],
        "train/peak_tflops": pace["peak_tflops"],
    } | best


if __name__ == "__main__":
    run_stage(main, resume_hint="`dvc repro` resumes from the last checkpoint")
