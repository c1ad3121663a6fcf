"""Write the trained model as a file for other programs, in ONNX or PyTorch's pt2.

The file takes images, uint8 [N, H, W, 3] for any N, and returns probabilities,
float32 [N, classes]. It is written only if it computes what the model does.

examples:
    python tools/export.py --format onnx
    python tools/export.py --format onnx-int8 --output small.onnx
    python tools/export.py --format pt2 --model models:/cifar10@champion
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

from vision.pipeline.stage import run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import argparse

from vision.pipeline.paths import ROOT
from vision.prediction.export import FILE_NAMES, export_model
from vision.prediction.model_option import add_model_option
from vision.prediction.predictor import find_model, load_predictor


def main() -> None:
    """A model -> one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--format",
        required=True,
        choices=FILE_NAMES,
        help="onnx and pt2 compute in fp32; onnx-int8, in eight bits, is smaller and faster, and needs data/processed",
    )
    add_model_option(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: model.onnx, model-int8.onnx or model.pt2 in models"
    )
    options = parser.parse_args()
    path = options.output or ROOT / "models" / FILE_NAMES[options.format]
    predictor = load_predictor(find_model(options.model))
    result = export_model(predictor, options.format, path, ROOT / "data" / "processed")
    print(f"{result.path}: {result.size / 1e6:.2f} MB; {result.check}")


if __name__ == "__main__":
    run_stage(main, resume_hint="nothing was written", single=False)
