"""A small model, and tools/serve.py in a process of its own."""

import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from environment import clean_environment
from vision.artifacts.trained_model import ModelConfig, build_model, save_model
from vision.core.models.classifier import Classifier
from vision.pipeline.params import load_params
from vision.pipeline.paths import ROOT

CLASSES = ["cat", "dog", "frog"]
MIN_CONFIDENCE = 0.5
"""Images of random pixels have confidences around it with seed 0."""


def make_model(seed: int) -> tuple[Classifier, ModelConfig]:
    """A plain CNN with random weights, for images of 32x32."""
    torch.manual_seed(seed)
    options = load_params().model.plain_cnn.model_dump()
    images = (CLASSES, [32, 32, 3], [0.5] * 3, [0.25] * 3)
    config = ModelConfig(*images, name="plain_cnn", options=options, min_confidence=MIN_CONFIDENCE)
    model = build_model(config)
    with torch.no_grad():
        list(model.parameters())[-2].mul_(10)  # probabilities that differ
    return model, config


def save_small_model(folder: Path, seed: int = 0) -> Path:
    """Write a model as `train` does; returns its folder."""
    folder.mkdir(parents=True)
    save_model(folder, *make_model(seed))
    return folder


class ServeProcess:
    """tools/serve.py that runs: its address, its process and its log."""

    def __init__(self, process: subprocess.Popen[str], address: str, log: Path) -> None:
        self.process = process
        self.address = address
        self.log = log

    def memory(self) -> float:
        """Resident memory in MB."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6


@contextmanager
def serve(folder: Path, *arguments: str, **variables: str) -> Iterator[ServeProcess]:
    """Run tools/serve.py at a free port for the block, with the model and the log in `folder`."""
    log = folder / "serve.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tools/serve.py"), "--model", "models", "--port", "0", *arguments],
            cwd=folder, env=clean_environment(**variables), stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 120)[0], log.read_text()
        found = re.search(r"http://[\w.\[\]:]+", process.stdout.readline())
        assert found is not None, log.read_text()
        yield ServeProcess(process, found[0], log)
    finally:
        process.kill()
        process.wait()
