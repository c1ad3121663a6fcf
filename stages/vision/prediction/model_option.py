"""The option `--model` of the tools that use a trained model."""

import argparse

from vision.pipeline.paths import ROOT


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add the option. Its value is what `find_model` takes; by default it is models/ of this checkout."""
    parser.add_argument(
        "--model",
        default=str(ROOT / "models"),
        metavar="MODEL",
        help="folder that train wrote, file FILE.onnx, or MLflow URI: models:/NAME@ALIAS, models:/NAME/VERSION or "
        "runs:/RUN_ID/model (default: models in this checkout)",
    )
