"""Download: the real CIFAR-10, each batch checked against its pinned checksum, as uint8 arrays in data/raw."""

from vision.stage import ROOT, run_stage

# isort: split
# What follows takes seconds to import; vision.stage stands before it so that Ctrl-C is one line even then.
from vision import arrays, formats, sources
from vision.params import load_params


def main() -> None:
    """Fetch the batches and write them in the same bytes wherever they came from."""
    params = load_params().download

    *train_batches, test_batch = sources.fetch(params.source, say)

    train = arrays.Split(*formats.decode(train_batches))
    test = arrays.Split(*formats.decode([test_batch]))
    arrays.write_raw(ROOT / "data" / "raw", train, test, formats.CLASSES)
    say(f"{len(train.labels):,} training and {len(test.labels):,} test images, checksums as pinned, in data/raw")


def say(line: str) -> None:
    """Print a line of this stage."""
    print(f"download: {line}", flush=True)


if __name__ == "__main__":
    run_stage(main)
