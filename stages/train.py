"""Fit the network to the training split and keep the best weights by validation; the run is recorded in MLflow."""

from vision.stage import ROOT, UserError, run_stage

# isort: split
# What follows takes seconds to import; vision.stage stands before it so that Ctrl-C is one line even then.
from dataclasses import asdict, astuple, fields
from statistics import harmonic_mean

import torch

from vision import arrays, fit, tracking, weights
from vision.batches import Examples
from vision.device import choose, environment, keep_freed_memory
from vision.params import Params, load_params
from vision.progress import bar


def main() -> None:
    """data/processed -> models/, metrics/train.json, metrics/history.csv."""
    params = load_params()
    stats = arrays.read_stats(ROOT / "data/processed")
    try:
        device, dtype = choose(params.train.device, params.train.precision)
    except ValueError as error:
        raise UserError(f"params.yaml: {error}") from None
    keep_freed_memory()
    train, val = (examples(name, device) for name in ("train", "val"))

    torch.manual_seed(params.seed)
    description = weights.Description(
        name=params.model.name,
        options=params.model.model_dump(exclude={"name"}),
        classes=stats.classes,
        image_shape=stats.image_shape,
        mean=stats.mean,
        std=stats.std,
    )
    model = weights.build(description).to(device)
    model.initialize_from(train.images[:5000])

    with tracking.training_run(params, stats) as run:
        try:
            fitted = fit_with_progress(model, train, val, params, dtype, run)
        except fit.Diverged as error:
            raise UserError(f"{error} is not a finite number; lower train.lr (now {params.train.lr:g})") from None
        summary = summarize(fitted, model)
        weights.save(ROOT / "models", model, description)
        arrays.write_csv(
            ROOT / "metrics/history.csv",
            [field.name for field in fields(fit.Epoch)],
            [astuple(epoch) for epoch in fitted.history],
        )
        arrays.write_json(ROOT / "metrics/train.json", summary)
        found = environment(device, dtype)
        arrays.write_json(ROOT / "models/run.json", {"mlflow": run.record, "environment": found})
        run.set_tags({**found, "parameters": summary["parameters"]})
        run.log_metrics({"train/best_epoch": summary["best_epoch"], "train/total_seconds": summary["seconds"]})
        if "val_accuracy" in summary:
            run.log_metrics({f"val/best_{name}": summary[f"val_{name}"] for name in ("loss", "accuracy")})
        probabilities = torch.nn.Sequential(model.cpu(), torch.nn.Softmax(1)).eval()
        run.log_model(probabilities, train.images[:2].cpu().numpy(), stats.classes)
    best = fitted.history[fitted.best_epoch - 1]
    held_out = f", validation accuracy {best.val_accuracy:.2%}" if best.val_accuracy is not None else ""
    print(f"train: best epoch {fitted.best_epoch} of {len(fitted.history)}{held_out}")


def examples(name: str, device: torch.device) -> Examples:
    """Bring one split to the device: images as uint8, labels as int64."""
    split = arrays.read_split(ROOT / "data/processed", name)
    return Examples(
        torch.tensor(split.images, device=device), torch.tensor(split.labels, device=device, dtype=torch.int64)
    )


def fit_with_progress(
    model: torch.nn.Module, train: Examples, val: Examples, params: Params, dtype: torch.dtype, run: tracking.Run
) -> fit.Fitted:
    """Call `fit.fit`, showing a bar of images and a line an epoch, and recording each epoch as it ends."""
    settings = fit.Settings(seed=params.seed, dtype=dtype, **params.train.model_dump(exclude={"device", "precision"}))
    # In per cent: images of an epoch at full size take longer than those of the first ones.
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {postfix}"
    with bar(total=100, unit="%", description="train", bar_format=form) as progress_bar:

        def on_progress(progress: fit.Progress) -> None:
            progress_bar.set_postfix_str(
                f"epoch {progress.epoch}/{settings.epochs}, loss {progress.loss:.3f}, "
                f"accuracy {progress.accuracy:.1%}, {progress.images_per_s:,.0f} images/s",
                refresh=False,
            )
            progress_bar.update(100 * progress.share - progress_bar.n)

        def on_epoch(epoch: fit.Epoch) -> None:
            validated = ""
            if epoch.val_loss is not None:
                validated = f"; val loss {epoch.val_loss:.4f}, accuracy {epoch.val_accuracy:.2%}"
            progress_bar.write(
                f"epoch {epoch.epoch:3d}: train loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}"
                f"{validated}; {epoch.seconds:.1f} s, {epoch.images_per_s:,.0f} images/s"
            )
            run.log_epoch(asdict(epoch))

        return fit.fit(model, train, val, settings, on_progress, on_epoch)


def summarize(fitted: fit.Fitted, model: torch.nn.Module) -> dict[str, float]:
    """The figures of metrics/train.json: those of the best epoch, and the totals."""
    best = asdict(fitted.history[fitted.best_epoch - 1])
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return {
        "best_epoch": fitted.best_epoch,
        "epochs": len(fitted.history),
        "stopped_early": fitted.stopped_early,
        **{name: best[name] for name in names if best[name] is not None},
        "seconds": sum(epoch.seconds for epoch in fitted.history),
        # Every epoch trains on as many images.
        "images_per_s": harmonic_mean([epoch.images_per_s for epoch in fitted.history]),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


if __name__ == "__main__":
    run_stage(main)
