"""Device and precision, settings of the process that make training fast or deterministic, and the environment."""

import ctypes
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Device = Literal["auto", "cuda", "mps", "cpu"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def select_device(device: Device, precision: Precision) -> tuple[torch.device, torch.dtype]:
    """Return the device, and the dtype that convolutions and matrix products are computed in.

    Args:
        device: "auto" is the fastest that is available.
        precision: "auto" is bf16 if the hardware supports it natively, otherwise fp32.

    Raises:
        ValueError: the device is not available, or does not support the precision. The message names the parameter.
    """
    is_available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    names = [name for name, available in is_available.items() if available]
    if device != "auto" and device not in names:
        raise ValueError(f"train.device: {device} is not available here (available: {', '.join(names)})")
    selected = torch.device(names[0] if device == "auto" else device)
    if precision == "auto":
        return selected, torch.bfloat16 if has_native_bf16(selected) else torch.float32
    if precision == "fp16" and selected.type != "cuda":
        raise ValueError(
            f"train.precision: fp16 needs a CUDA device, but the device is {selected.type}; use auto, bf16 or fp32"
        )
    return selected, DTYPES[precision]


def has_native_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16, and does not emulate it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        capabilities = cpu_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_tile"))
    return False


def cpu_capabilities(backend: Any = torch.cpu, cpuinfo: Path = Path("/proc/cpuinfo")) -> Mapping[str, Any]:
    """Return the instruction sets of the CPU, as `torch.cpu.get_capabilities` (PyTorch 2.11 and later) does.

    Earlier versions have no public function for it. There, the flags that Linux reports are returned, and on other
    systems nothing.

    Args:
        backend: the module that may have `get_capabilities`.
        cpuinfo: the file in which Linux reports the flags.

    Returns:
        By name, such as "amx_bf16" or "avx512_bf16"; a name that is absent is not supported.
    """
    if get_capabilities := getattr(backend, "get_capabilities", None):
        return get_capabilities()
    return dict.fromkeys(_cpuinfo_field("flags", cpuinfo).split(), True)


def compute_deterministically() -> None:
    """Make this process use only deterministic kernels; call it before anything is computed.

    An operation without one on the device raises RuntimeError. On a CPU this changes no result.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
    torch.backends.cudnn.benchmark = False  # it selects the kernel that happens to be fastest
    torch.use_deterministic_algorithms(True)
    # Filling memory that is never read before it is written takes time and changes nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Make this process keep freed memory for its next allocation; does nothing without glibc.

    Otherwise each large tensor is mapped anew, and the kernel clears its pages, at every step. On a CPU that takes a
    fifth of the time of a training step.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1
"""From glibc's malloc.h."""


def flush_denormals() -> None:
    """Make this process treat floats below about 1e-38 as 0, if the CPU can; call it before threads start.

    Adam's averages of gradients that are always 0, such as those of dead units, decay to such numbers. Some CPUs
    compute with them many times more slowly.
    """
    torch.set_flush_denormal(True)


def describe_environment(device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """Return device, precision, threads, and the versions of Python and of the main packages."""
    precision = next(name for name, value in DTYPES.items() if value == dtype)
    versions = {name: _version(name) for name in ("torch", "torchvision", "dvc", "mlflow")}
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name(),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name, found in versions.items() if found},
    }


def _cpu_name() -> str:
    return _cpuinfo_field("model name") or platform.processor() or platform.machine()


def _cpuinfo_field(name: str, path: Path = Path("/proc/cpuinfo")) -> str:
    """Return a field of the first CPU in /proc/cpuinfo; an empty string if there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
