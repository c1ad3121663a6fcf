"""Download: a published dataset, or a folder of images, verified and written to data/raw."""

from vision.pipeline.stage import run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

from vision.datasets import cifar, download, image_folder
from vision.pipeline.params import Download, load_params
from vision.pipeline.paths import ROOT
from vision.storage import arrays

RAW = ROOT / "data/raw"


def main() -> None:
    """Write data/raw; its bytes do not depend on where the data came from."""
    params = load_params().download
    if params.dataset == "folder":
        copy_image_folder(params)
    else:
        download_cifar(params)


def copy_image_folder(params: Download) -> None:
    """Copy the user's images to data/raw, after decoding each of them."""
    listing = image_folder.copy(params.source, RAW, say)
    count = sum(map(len, listing.images.values()))
    test = f", {len(listing.images['test']):,} of them test images" if "test" in listing.images else ""
    say(f"{count:,} images of {len(listing.classes):,} classes{test}, each decoded once as a check, in data/raw")


def download_cifar(params: Download) -> None:
    """Get a CIFAR dataset from the cache, a download or the user's own path, and write its arrays to data/raw."""
    train, test, classes = download.fetch(cifar.DATASETS[params.dataset], params.source, params.checksums, say)
    arrays.write_raw(RAW, train, test, classes)
    say(f"{len(train.labels):,} training and {len(test.labels):,} test images, checksums match, in data/raw")


def say(line: str) -> None:
    """Print a line with the name of this stage."""
    print(f"download: {line}", flush=True)


if __name__ == "__main__":
    run_stage(main)
