"""The device of a stage that computes with PyTorch."""

import torch

from vision.core.device import compute_deterministically, keep_freed_memory, select_device
from vision.pipeline.errors import UserError
from vision.pipeline.params import Train


def set_up_device(params: Train) -> tuple[torch.device, torch.dtype]:
    """Prepare this process for the device, precision and determinism that params.yaml asks for.

    Raises:
        UserError: this machine has no such device, or the device does not support the precision.
    """
    if params.deterministic:
        compute_deterministically()
    try:
        device, dtype = select_device(params.device, params.precision)
    except ValueError as error:
        raise UserError(f"params.yaml: {error}") from None
    keep_freed_memory()
    return device, dtype
