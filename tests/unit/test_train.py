from train import epoch_metrics
from vision.core.loop import EpochMetrics


def test_the_metrics_of_an_epoch_have_the_name_of_their_split_as_prefix() -> None:
    epoch = EpochMetrics(3, 0.1, 0.5, 640, 2.0, 0.25, val_loss=1.5, val_accuracy=None, seconds=1.25, images_per_s=512)
    assert epoch_metrics(epoch, share_of_peak=0.75) == {
        "train/lr": 0.1,
        "train/image_scale": 0.5,
        "train/images": 640,
        "train/loss": 2.0,
        "train/accuracy": 0.25,
        "val/loss": 1.5,
        "train/seconds": 1.25,
        "train/images_per_s": 512,
        "train/share_of_peak": 0.75,
    }
