"""A hash of everything that the result of a training depends on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from ruamel.yaml import YAML

from vision.core.device import cpu_capabilities, describe_environment
from vision.pipeline.params import Params
from vision.pipeline.paths import ROOT, resolve_path

_DATA = ("train_images.npy", "train_labels.npy", "val_images.npy", "val_labels.npy", "stats.json")


def training_fingerprint(
    params: Params, device: torch.device, dtype: torch.dtype, kernels: Mapping[str, bool | str]
) -> str:
    """Hash the parameters, the data, the code, the versions and the hardware of the training in this process.

    Two trainings with the same fingerprint end with the same weights, bit for bit on a CPU, so one can resume from the
    checkpoint of the other.

    Args:
        params: of all stages.
        device: where the model is trained.
        dtype: what convolutions are computed in.
        kernels: the names of the kernels that the training uses, because each rounds differently.

    Returns:
        16 hexadecimal digits.
    """
    files = [*_code_files(), *(ROOT / "data/processed" / name for name in _DATA)]
    if params.model.weights is not None and (path := resolve_path(params.model.weights)).is_file():
        files.append(path)
    environment = describe_environment(device, dtype)
    facts = {
        "params": params.model_dump(include={"seed", "model", "train"}, exclude={"train": {"checkpoint_seconds"}}),
        "files": [[path.name, _sha256(path)] for path in files],
        "torch": torch.__version__,
        "dtype": str(dtype),
        "kernels": dict(kernels),
        # Kernels, and the order in which they add numbers, depend on the processor and the number of threads.
        "hardware": {name: environment[name] for name in ("device", "device_name", "threads")},
        "capabilities": dict(cpu_capabilities()),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _code_files() -> list[Path]:
    """The files of code that the train stage depends on in dvc.yaml, in Python and in C++."""
    deps = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]["train"]["deps"]
    paths = [ROOT / dep for dep in deps if dep.startswith("stages/")]
    return [file for path in paths for file in (_files_of_code(path) if path.is_dir() else [path])]


def _files_of_code(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
