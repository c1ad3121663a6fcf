"""Classify image files with a trained model.

Prints the first predictions. --output writes all of them as a CSV file: the
image, its class, the probability of that class, whether the image is unknown
because no class is likely enough, and the probability of each class. If the
command is interrupted, the same command continues the file. A file that cannot
be read is named and left out; the exit status is then 1.

examples:
    python tools/predict.py cat.jpg
    python tools/predict.py photos --output predictions.csv --page photos.html
    python tools/predict.py photos --model models:/cifar10@champion
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

from vision.pipeline.stage import run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import argparse
from collections.abc import Sequence

from vision.core.device import DTYPES, keep_freed_memory
from vision.pipeline.errors import UserError
from vision.pipeline.validation import printable
from vision.prediction.image_list import list_images
from vision.prediction.model_option import add_model_option
from vision.prediction.predictions import Prediction, open_csv, predict_all
from vision.prediction.predictor import find_model, load_predictor

MAX_ROWS = 10
"""Predictions to print."""
MAX_NAME = 50
"""Characters of a file's name to print."""


def main() -> None:
    """Classify the files; print the first predictions, and write the CSV file and the page."""
    options = parse_arguments()
    files = list_images(options.paths)
    for option, path, suffix in (("--output", options.output, ".csv"), ("--page", options.page, ".html")):
        if path is not None:
            check_output(f"{option} {path}", path, suffix)
    predictor = load_predictor(find_model(options.model), options.precision)
    keep_freed_memory()
    with open_csv(options.output, predictor, files) as table:
        if table is not None and table.done:
            say(f"continuing {options.output}: {table.done:,} of {len(files):,} files are done")
        if table is not None and table.problem:
            say(f"starting {options.output} again; the rows of an interrupted run are not used: {table.problem}")
        predictions = predict_all(predictor, files, table)
        if options.page:
            from vision.prediction.gallery import write_page  # only now, because few need it

            write_page(options.page, predictions.rows, predictor)
    for file, reason in predictions.errors.items():
        say(f"{file}: {reason}")
    print_rows(predictions.rows)
    for path in filter(None, (options.output, options.page)):
        print(f"wrote {path}")
    if predictions.errors:
        raise UserError(f"{len(predictions.errors):,} of {len(files):,} files could not be read and were left out")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image file, or folder with images at any depth")
    add_model_option(parser)
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="CSV file to write")
    parser.add_argument("--page", type=Path, metavar="FILE.html", help="page to write, with a thumbnail of each image")
    parser.add_argument(
        "--precision", choices=["auto", *DTYPES], default="fp32", help="of convolutions (default: fp32)"
    )
    return parser.parse_args()


def check_output(option: str, path: Path, suffix: str) -> None:
    """Refuse to replace anything that is not a file of this kind, such as an image or a device.

    Raises:
        UserError: the name has another suffix, or belongs to something that is not a file.
    """
    if path.suffix.lower() != suffix:
        raise UserError(f"{option}: expected a name that ends in {suffix}, so that no other file is replaced")
    if path.exists() and not path.is_file():
        raise UserError(f"{option}: is not a file; expected the name of a file")


def say(message: str) -> None:
    """Print a line on stderr. Nothing is printed on stdout before the files are complete: the reader may be gone."""
    print(f"predict: {printable(message)}", file=sys.stderr, flush=True)


def format_class(row: Prediction) -> str:
    """The class, or `unknown` with the class that is most likely."""
    name = printable(row.class_name)
    return f"unknown ({name}?)" if row.unknown else name


def print_rows(rows: Sequence[Prediction]) -> None:
    """Print the first predictions as a table with aligned columns."""
    if not rows:
        return
    names = [row.image if len(row.image) <= MAX_NAME else f"…{row.image[1 - MAX_NAME :]}" for row in rows[:MAX_ROWS]]
    cells = [("image", "class", "probability")]
    cells += [(name, format_class(row), f"{row.probability:.4f}") for name, row in zip(names, rows, strict=False)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    if len(rows) > MAX_ROWS:
        print(f"… and {len(rows) - MAX_ROWS:,} more")


if __name__ == "__main__":
    # Two processes may classify at once; `open_csv` lets only one of them write a file.
    run_stage(main, resume_hint="with --output, the same command continues after the last 500 images", single=False)
