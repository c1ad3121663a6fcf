"""A hash of everything that the predictions of files depend on."""

import hashlib
import json
import os
from collections.abc import Sequence

import PIL
import torch

from vision.core.device import cpu_capabilities, describe_environment
from vision.prediction.predictor import BATCH_SIZE, Predictor


def prediction_fingerprint(predictor: Predictor, files: Sequence[str]) -> str:
    """Hash the model, the names, sizes and times of the files, the versions and the hardware.

    Predictions with the same fingerprint are the same, bit for bit on a CPU.

    Returns:
        64 hexadecimal digits.
    """
    environment = describe_environment(predictor.device, predictor.dtype)
    facts = {
        "classes": list(predictor.classes),
        "image_size": predictor.image_size,
        "min_confidence": predictor.min_confidence,
        "network": repr(predictor.network),
        "weights": _hash_weights(predictor.network),
        "files": [[file, *_size_and_time(file)] for file in files],
        "batch_size": BATCH_SIZE,
        "dtype": str(predictor.dtype),
        "versions": [torch.__version__, PIL.__version__],
        # Kernels, and the order in which they add numbers, depend on the processor and the number of threads.
        "hardware": {name: environment[name] for name in ("device", "device_name", "threads")},
        "capabilities": dict(cpu_capabilities()),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _hash_weights(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _size_and_time(file: str) -> tuple[int, ...]:
    try:
        status = os.stat(file)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns
