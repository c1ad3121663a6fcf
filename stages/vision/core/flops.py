"""The FLOPs of a training per image, and the measured peak FLOPs per second of the device.

The ratio of the speed of a training to the peak shows how well the training uses the device.
"""

import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """Measure the floating-point operations per second of a large square matrix product.

    The fastest of several products counts, because other processes may use the machine too.

    Args:
        device: where to measure.
        dtype: of the matrices.
        seconds: how long to measure, about.
    """
    size = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)  # a separate one, so that training does not depend on this
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    # Convolutions may round float32 to TF32 on a GPU, by default. Matrix products are measured with the same setting.
    matmul = torch.backends.cuda.matmul
    previous_setting = matmul.allow_tf32
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        _time_matmul(a, b)  # warm-up
        fastest, deadline = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            fastest = min(fastest, _time_matmul(a, b))
    finally:
        matmul.allow_tf32 = previous_setting
    return 2 * size**3 / fastest


def _time_matmul(a: Tensor, b: Tensor) -> float:
    start = time.perf_counter()
    (a @ b)[0, 0].item()  # reading a number waits for the device
    return time.perf_counter() - start


def training_flops(model: nn.Module, images: Tensor) -> float:
    """Count the floating-point operations per image of the forward and backward passes.

    Convolutions and matrix products are counted, by PyTorch's FlopCounterMode; a multiplication and an addition are two
    operations. The model keeps its weights, statistics and mode, and has no gradients afterwards.

    Args:
        model: maps images to logits.
        images: uint8 [N, H, W, C]; one is enough.
    """
    was_training = model.training
    model.eval()  # so that batch normalization does not update its statistics
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    model.train(was_training)
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(images)
