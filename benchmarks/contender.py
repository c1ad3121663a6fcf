"""What a contender of speed.py returns for one training, its clock, and its count of operations."""

import time
from typing import NotRequired, TypedDict

import torch
from torch import nn

from vision.core import flops


class Run(TypedDict):
    """One training and its test.

    Keys:
        one_view, tta: accuracy of one view per image, and of averaged views.
        seconds: of preparing and training, without reading the data, building and compiling.
        tta_seconds: of the averaged views.
        images: trained on.
        flops: of all forward and backward passes.
        warm_up: seconds before the first run of the process, in which it compiles.
    """

    one_view: float
    tta: float
    seconds: float
    tta_seconds: float
    images: int
    flops: float
    warm_up: NotRequired[float]
    peak: NotRequired[float]


def read_clock() -> float:
    """Return the time in seconds, after the GPU has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def count_flops(network: nn.Module, size: int) -> float:
    """Count the operations per image of `size` pixels a side, approximately.

    The whitening layer's bias, trained in the first steps only, is counted in all steps.
    """
    return flops.training_flops(network.float(), torch.zeros(1, 3, size, size))
