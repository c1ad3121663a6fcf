"""What the result of a training depends on, as one hash: parameters, data, code and what it is computed with."""

import hashlib
import json
from pathlib import Path

import torch
import yaml

from vision.pipeline.params import Params
from vision.pipeline.paths import ROOT, resolve_path

_DATA = ("train_images.npy", "train_labels.npy", "val_images.npy", "val_labels.npy", "stats.json")


def of_training(params: Params, device: torch.device, dtype: torch.dtype) -> str:
    """The identity of the training that this process is about to do, of 16 hexadecimal digits.

    Two of one identity end in the same weights, so that one can go on from where the other stopped.
    """
    files = [*_code(), *(ROOT / "data/processed" / name for name in _DATA)]
    if params.model.weights is not None:
        files += [path for path in [resolve_path(params.model.weights)] if path.is_file()]
    facts = {
        "params": params.model_dump(include={"seed", "model", "train"}, exclude={"train": {"checkpoint_seconds"}}),
        "files": [[path.name, _digest(path)] for path in files],
        "torch": torch.__version__,
        "device": device.type,
        "dtype": str(dtype),
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _code() -> list[Path]:
    """The files that dvc.yaml says the train stage runs."""
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["train"]["deps"]
    paths = [ROOT / dep for dep in deps if dep.startswith("stages/")]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
