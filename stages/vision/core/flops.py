"""How near to the hardware's limit a training runs: the arithmetic that it needs, and the most that can be done."""

import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """Measure what the hardware reaches in a large square matrix product: floating-point operations a second.

    The fastest of the products that fit into about `seconds`, two at least: others may be using the machine as well.
    """
    size = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)  # its own: what training draws does not depend on this
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    # What convolutions may do to float32 on a GPU, by default round it to TF32, the product may do too.
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    _timed_product(left, right)  # the first one also sets up the libraries
    fastest, ends = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < ends:
        fastest = min(fastest, _timed_product(left, right))
    matmul.allow_tf32 = before
    return 2 * size**3 / fastest


def _timed_product(left: Tensor, right: Tensor) -> float:
    started = time.perf_counter()
    # Reading one number makes the clock wait for devices that compute on their own time.
    (left @ right)[0, 0].item()
    return time.perf_counter() - started


def training_flops(model: nn.Module, images: Tensor) -> float:
    """Count the floating-point operations an image that the forward and backward passes need.

    Convolutions and matrix products are counted, as torch's FlopCounterMode does, a multiplication and an addition as
    two. The model is left as it was, without gradients.

    Args:
        model: maps images to logits.
        images: [N, H, W, C], one is enough; uint8.
    """
    was_training = model.training
    model.eval()  # so that normalisation learns nothing from these images
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    model.train(was_training)
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(images)
