"""Download: a published data set, checked against its pinned checksums, or a folder of images, into data/raw."""

from vision.pipeline.stage import run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

from vision.datasets import cifar, download, image_folder
from vision.pipeline.params import load_params
from vision.pipeline.paths import ROOT
from vision.storage import arrays


def main() -> None:
    """Put the raw data into data/raw, in the same bytes wherever it came from."""
    params = load_params().download
    if params.dataset == "folder":
        listing = image_folder.copy(params.source, ROOT / "data" / "raw", say)
        count = sum(map(len, listing.images.values()))
        tested = f", {len(listing.images['test']):,} of them for the test" if "test" in listing.images else ""
        say(f"{count:,} images of {len(listing.classes):,} classes{tested}, each decoded whole, in data/raw")
        return

    train, test, classes = download.fetch(cifar.DATASETS[params.dataset], params.source, say)
    arrays.write_raw(ROOT / "data" / "raw", train, test, classes)
    say(f"{len(train.labels):,} training and {len(test.labels):,} test images, checksums as pinned, in data/raw")


def say(line: str) -> None:
    """Print a line of this stage."""
    print(f"download: {line}", flush=True)


if __name__ == "__main__":
    run_stage(main)
