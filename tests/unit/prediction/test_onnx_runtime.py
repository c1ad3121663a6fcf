import logging
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from striped_model import write_striped
from vision.prediction.onnx_network import OnnxNetwork
from vision.prediction.onnx_runtime import to_onnx_runtime
from vision.prediction.predictor import Predictor, find_model, load_predictor

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    write_striped(tmp_path, width=8)
    return load_predictor(find_model(str(tmp_path / "models")))


@pytest.mark.slow
def test_a_predictor_runs_in_onnx_runtime_while_others_are_used(predictor: Predictor) -> None:
    expected = predictor.predict(IMAGES)
    stopped = threading.Event()
    differences: list[float] = []

    def use() -> None:
        while not stopped.is_set():
            differences.append(float(np.abs(predictor.predict(IMAGES) - expected).max()))

    thread = threading.Thread(target=use)
    thread.start()
    try:
        converted = to_onnx_runtime(predictor)
    finally:
        stopped.set()
        thread.join()
    assert max(differences) < 1e-6
    assert isinstance(converted.network, OnnxNetwork)
    assert (converted.classes, converted.source) == (predictor.classes, predictor.source)
    np.testing.assert_allclose(converted.predict(IMAGES), expected, atol=1e-4)
    assert to_onnx_runtime(converted) is converted


def test_other_precisions_stay_in_pytorch(predictor: Predictor) -> None:
    in_bf16 = replace(predictor, dtype=torch.bfloat16)
    assert to_onnx_runtime(in_bf16) is in_bf16


@pytest.mark.slow
def test_a_model_that_cannot_be_converted_stays_in_pytorch(
    predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad():
        for weight in predictor.network.parameters():  # now they differ from those in the folder
            weight.mul_(1.1)
    assert to_onnx_runtime(predictor) is predictor
    shutil.rmtree(tmp_path / "models")
    assert to_onnx_runtime(predictor) is predictor
    different, missing = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert "models runs in PyTorch, because ONNX Runtime does not agree: probabilities of 40 images" in different
    assert "models runs in PyTorch, not in ONNX Runtime: " in missing
    assert "models: expected a folder that train wrote" in missing
