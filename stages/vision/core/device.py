"""Where to compute and in which precision, and what to tell about it afterwards."""

import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


Device = Literal["auto", "cuda", "mps", "cpu"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def choose(device: Device, precision: Precision) -> tuple[torch.device, torch.dtype]:
    """The device, and the dtype that convolutions are computed in on it.

    Args:
        device: "auto" is the fastest there is.
        precision: "auto" is bf16 where the hardware computes it natively, else fp32.

    Raises:
        ValueError: this machine has no such device, or the device no such precision; the message names the parameter.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [name for name, there in available.items() if there]
    if device != "auto" and device not in usable:
        raise ValueError(f"train.device: {device} is not available here (available: {', '.join(usable)})")
    chosen = torch.device(usable[0] if device == "auto" else device)
    if precision == "auto":
        return chosen, torch.bfloat16 if _has_native_bf16(chosen) else torch.float32
    if precision == "fp16" and chosen.type != "cuda":
        raise ValueError(f"train.precision: fp16 needs a CUDA device, this is {chosen.type}; use auto, bf16 or fp32")
    return chosen, DTYPES[precision]


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def compute_deterministically() -> None:
    """Have this process take only kernels that give the same bits each time, before it computes anything.

    An operation that has none on the device raises RuntimeError. What a CPU computes is the same with this and without.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
    torch.backends.cudnn.benchmark = False  # it would choose the kernel that happened to be the fastest
    torch.use_deterministic_algorithms(True)
    # That also fills memory that nothing was written to yet; it would be found out by other means, and takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, for its next allocation; on Linux with glibc, else nothing.

    Otherwise each large tensor is mapped anew, and the kernel clears its pages again at every step: a fifth of the time
    of a training step on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1
"""From glibc's malloc.h."""


def flush_denormals() -> None:
    """Have this process take floats nearer to 0 than 1e-38 for 0, where the processor can; before it starts threads.

    Adam's averages of gradients that are always 0, as those of dead units are, fall so low and stay there, and some
    processors compute with such numbers many times more slowly.
    """
    torch.set_flush_denormal(True)


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """What a run was computed with: device, precision, threads, Python and the versions of the main packages."""
    precision = next(name for name, value in DTYPES.items() if value == dtype)
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name(),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in ("torch", "torchvision", "dvc", "mlflow") if (found := _version(name))},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
