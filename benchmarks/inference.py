"""Compare the forms of a trained model, in turn in one process: PyTorch, pt2 and ONNX Runtime.

    python benchmarks/inference.py                       # the default network, seven rounds: two minutes
    python benchmarks/inference.py --batches 1 --rounds 3

A round times each form once. Ratios are form / PyTorch in fp32, of the times of a round: median, lowest and highest;
below 1 the form is faster. Weights and images are random, which costs the same as real ones. All forms have as many
threads as PyTorch; set them with OMP_NUM_THREADS. Other programs on the machine distort the result.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import numpy as np
import torch
from torch import nn

from vision.core.device import keep_freed_memory
from vision.core.inference import autocast
from vision.core.models.classifier import InputSpec
from vision.core.models.registry import create_model
from vision.prediction.onnx_export import export_onnx, model_metadata
from vision.prediction.onnx_network import OnnxNetwork
from vision.prediction.pt2_export import export_pt2
from vision.prediction.quantization import quantize

SECONDS = 0.2
"""The time of one measurement, which repeats a batch; a batch that takes longer is computed once."""
CLASSES = 10

Predict = Callable[[np.ndarray], np.ndarray]
"""Maps images, uint8 [N, H, W, 3], to probabilities, float32 [N, classes]."""


def make_forms(widths: list[int], images: np.ndarray) -> dict[str, Predict]:
    """Return the forms of the default network, by name."""
    inputs = InputSpec(images.shape[1:], [0.5] * 3, [0.25] * 3)
    model = create_model("convnet", {"widths": widths, "depth": 2}, inputs, CLASSES)
    model.initialize_from(torch.from_numpy(images))
    network = nn.Sequential(model, nn.Softmax(1)).eval()
    metadata = model_metadata([str(number) for number in range(CLASSES)], None, "random")
    onnx_model = export_onnx(network, images[:2], metadata)
    int8_model = quantize(onnx_model, images[:200], lambda count: None)
    pt2 = torch.export.load(io.BytesIO(export_pt2(network, images[:2], {}))).module()
    return {
        "PyTorch, fp32": in_pytorch(network, torch.float32),
        "PyTorch, bf16": in_pytorch(network, torch.bfloat16),
        "pt2, fp32": in_pytorch(pt2, torch.float32),
        "ONNX Runtime, fp32": OnnxNetwork(onnx_model.SerializeToString()).run,
        "ONNX Runtime, int8": OnnxNetwork(int8_model.SerializeToString()).run,
    }


def in_pytorch(network: nn.Module, dtype: torch.dtype) -> Predict:
    """Return a function that runs a network in PyTorch."""

    @torch.inference_mode()
    def predict(images: np.ndarray) -> np.ndarray:
        with autocast(torch.device("cpu"), dtype):
            return network(torch.from_numpy(images)).float().numpy()

    return predict


def seconds_per_batch(predict: Predict, images: np.ndarray) -> float:
    """Return the median time of a batch, without the first one."""
    predict(images)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        predict(images)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 1000], metavar="IMAGES")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    shape = (max(200, *options.batches), options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    forms = make_forms(options.widths, images)
    print(f"{options.widths}, images of {options.size}x{options.size}, {torch.get_num_threads()} threads")
    print("| images at a time | form | ms, median | images/s | ratio | from, to |\n|---|---|---|---|---|---|")
    for count in options.batches:
        rounds = [
            {name: seconds_per_batch(predict, images[:count]) for name, predict in forms.items()}
            for _ in range(options.rounds)
        ]
        for name in forms:
            seconds = statistics.median(times[name] for times in rounds)
            ratios = [times[name] / times["PyTorch, fp32"] for times in rounds]
            print(
                f"| {count:,} | {name} | {1e3 * seconds:.2f} | {count / seconds:,.0f} "
                f"| {statistics.median(ratios):.2f} | {min(ratios):.2f}, {max(ratios):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
