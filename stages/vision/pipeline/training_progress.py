"""What a training prints: a progress bar with the remaining time, and a line per epoch."""

from vision.core.loop import EpochMetrics
from vision.core.meter import Progress
from vision.pipeline.progress import bar


class TrainingProgress:
    """The progress bar of a training. `update` and `write_epoch` are callbacks of `vision.core.loop.fit`.

    The bar counts percent of the work, because images at full size take longer than those of the first epochs.
    """

    def __init__(self, epochs: int, resumed_epochs: int = 0) -> None:
        """Show a training of `epochs`, the first `resumed_epochs` of which come from a checkpoint."""
        self.epochs, self.resumed_epochs = epochs, resumed_epochs
        bar_format = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = bar(total=100, unit="%", description="train", bar_format=bar_format)

    def update(self, progress: Progress) -> None:
        """Move the bar, and show the metrics of the current epoch."""
        self.bar.set_postfix_str(
            f"epoch {progress.epoch}/{self.epochs}, loss {progress.loss:.3f}, accuracy {progress.accuracy:.1%}, "
            f"{progress.images_per_s:,.0f} images/s",
            refresh=False,
        )
        self.bar.update(100 * progress.fraction - self.bar.n)

    def write_epoch(self, epoch: EpochMetrics) -> None:
        """Print the metrics of an epoch above the bar."""
        validation = ""
        if epoch.val_loss is not None:
            validation = f"; val loss {epoch.val_loss:.4f}, accuracy {epoch.val_accuracy:.2%}"
        self.bar.write(
            f"epoch {epoch.epoch:3d}: train loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}"
            f"{validation}; {epoch.seconds:.1f} s, {epoch.images_per_s:,.0f} images/s"
            f"{' (trained earlier)' if epoch.epoch <= self.resumed_epochs else ''}"
        )

    def close(self) -> None:
        """Print the bar a last time."""
        self.bar.close()
