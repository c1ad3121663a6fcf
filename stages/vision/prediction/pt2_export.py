"""A network as an exported program of PyTorch (pt2), which loads without this code and without unpickling."""

import io
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from vision.pipeline.errors import UserError


def export_pt2(network: nn.Module, example: np.ndarray, metadata: Mapping[str, str]) -> bytes:
    """Convert a network to pt2, for batches of any size.

    Args:
        network: on the CPU, in evaluation mode; maps uint8 [N, H, W, 3] to probabilities, float32 [N, classes].
        example: at least two images, uint8 [N, H, W, 3]; a batch of one would be exported as a constant.
        metadata: extra files, by name.

    Raises:
        UserError: the network cannot be exported.
    """
    images = torch.from_numpy(np.array(example))
    buffer = io.BytesIO()  # torch.export.save wants a file name that ends in .pt2
    # About the implementation of torch, and about weights that are not on the CPU; these are.
    with warnings.catch_warnings(action="ignore"):
        try:
            program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("N")},))
        except Exception as error:  # torch.export's errors have no common class
            reason = str(error).strip().partition("\n")[0][:200]
            raise UserError(f"PyTorch cannot export the network ({reason})") from error
        torch.export.save(program, buffer, extra_files=dict(metadata))
    return buffer.getvalue()
