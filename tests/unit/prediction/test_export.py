import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow.pytorch
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from striped_model import CLASSES, write_striped
from vision.pipeline.errors import UserError
from vision.prediction.export import export_model
from vision.prediction.mlflow_format import ModelSettings, save_mlflow_model
from vision.prediction.onnx_network import OnnxNetwork
from vision.prediction.predictor import ModelSource, Predictor, find_model, load_predictor
from vision.storage.arrays import read_split


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model and its images."""
    folder = tmp_path_factory.mktemp("checkout")
    write_striped(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(checkout: Path) -> Predictor:
    return load_predictor(find_model(str(checkout / "models")))


def make_predictor(network: nn.Module, dtype: torch.dtype = torch.float32) -> Predictor:
    return Predictor(network, CLASSES, (8, 8), ModelSource("pets", "pets", ""), torch.device("cpu"), dtype)


def run(folder: Path, script: str) -> str:
    """What a script prints that runs in the folder, and cannot import this repository's code."""
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD_ONNX = """
import json, sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
(entry,), (result,) = session.get_inputs(), session.get_outputs()
assert (entry.name, entry.type, entry.shape[1:]) == ("images", "tensor(uint8)", [8, 8, 3])
assert (result.name, result.type, result.shape[1:]) == ("probabilities", "tensor(float)", [4])
images = np.load("images.npy")
for count in (1, 5, 1000):
    (found,) = session.run(None, {"images": images[:count]})
    np.testing.assert_allclose(found, np.load("expected.npy")[:count], atol=1e-4)
print(session.get_modelmeta().custom_metadata_map["classes"])
assert "torch" not in sys.modules
"""
LOAD_PT2 = """
import numpy as np, torch
files = {"classes.json": ""}
network = torch.export.load("model.pt2", extra_files=files).module()
images = torch.from_numpy(np.load("images.npy"))
for count in (1, 5, 1000):
    np.testing.assert_allclose(network(images[:count]).detach(), np.load("expected.npy")[:count], atol=1e-4)
print(files["classes.json"])
"""


@pytest.mark.parametrize(
    ("file_format", "script"), [("onnx", LOAD_ONNX), pytest.param("pt2", LOAD_PT2, marks=pytest.mark.slow)]
)
def test_a_file_loads_without_this_code(
    file_format: str, script: str, predictor: Predictor, checkout: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"model.{file_format}"
    result = export_model(predictor, file_format, path, checkout / "data/processed")  # type: ignore[arg-type]
    assert (result.path, result.size) == (path, path.stat().st_size)
    assert result.check.startswith("probabilities of 1,008 images differ by at most ")
    assert result.check.endswith("no change of class")
    images = np.array(read_split(checkout / "data/processed", "val", 4).images)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "expected.npy", predictor.predict(images))
    assert json.loads(run(tmp_path, script)) == CLASSES
    names = {"images.npy", "expected.npy", path.name}
    assert {found.name for found in tmp_path.iterdir()} == names


def test_a_predictor_loads_an_exported_file(predictor: Predictor, checkout: Path, tmp_path: Path) -> None:
    export_model(predictor, "onnx", tmp_path / "stripes.onnx", checkout / "data/processed")
    source = find_model(str(tmp_path / "stripes.onnx"))
    loaded = load_predictor(source)
    assert (loaded.classes, loaded.image_size, source.name) == (CLASSES, (8, 8), "stripes")
    images = np.array(read_split(checkout / "data/processed", "val", 4).images)
    np.testing.assert_allclose(loaded.predict(images), predictor.predict(images), atol=1e-4)
    with pytest.raises(UserError, match=r"stripes\.onnx: the precision is that of the file; bf16 is not possible"):
        load_predictor(source, "bf16")
    with pytest.raises(UserError, match=r"stripes\.onnx: an exported file; name the model"):
        export_model(loaded, "pt2", tmp_path / "model.pt2", checkout)


def test_without_data_random_images_are_compared(predictor: Predictor, tmp_path: Path) -> None:
    check = export_model(predictor, "onnx", tmp_path / "model.onnx", tmp_path / "processed").check
    assert "probabilities of 1,008 images" in check
    assert check.endswith("stats.json: not found; `dvc repro` makes it)")
    assert "(random ones; " in check


class Different(nn.Module):
    """A network that does something else when it is exported."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        scores = images[:, 0, :4, 0].float() / 255
        if torch.compiler.is_exporting():
            scores = scores * self.scale
        return scores.softmax(1)


@pytest.mark.parametrize("file_format", ["onnx", "pt2"])
def test_a_file_that_does_not_agree_is_not_written(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / "model.out"
    path.write_text("old")
    with pytest.raises(UserError, match=r"pets: not written, because the file does not agree: probabilities of 1,008"):
        export_model(make_predictor(Different(1.01).eval()), file_format, path, tmp_path)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_model_from_mlflow_can_be_exported(predictor: Predictor, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    save_mlflow_model(tmp_path / "saved", predictor.network, images, ModelSettings(CLASSES, 0.5))
    loaded = make_predictor(mlflow.pytorch.load_model(tmp_path / "saved"))
    for file_format in ("onnx", "pt2"):
        export_model(loaded, file_format, tmp_path / f"model.{file_format}", tmp_path)
    found = OnnxNetwork(tmp_path / "model.onnx").run(images)
    np.testing.assert_allclose(found, predictor.predict(images), atol=1e-5)


def test_eight_bits_are_a_quarter_of_the_size_and_as_accurate(
    predictor: Predictor, checkout: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model-int8.onnx"
    result = export_model(predictor, "onnx-int8", path, checkout / "data/processed")
    size, accuracy = result.check.split("; ")
    assert 0.25 < float(size.partition("%")[0]) / 100 <= 0.3
    assert accuracy.startswith("validation accuracy ")
    network = OnnxNetwork(path)
    assert network.classes == CLASSES
    val = read_split(checkout / "data/processed", "val", 4)
    found = network.run(val.images)
    assert (found.argmax(1) == val.labels).mean() > 0.99
    assert 0 < np.abs(found - predictor.predict(np.array(val.images))).max() < 0.2
    np.testing.assert_allclose(network.run(val.images[:1]), found[:1], atol=1e-6)


def test_eight_bits_need_images(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stats\.json: not found; `dvc repro` makes it"):
        export_model(predictor, "onnx-int8", tmp_path / "model.onnx", tmp_path)
    write_striped(tmp_path / "empty", validation=0)
    with pytest.raises(UserError, match=r"processed: has no validation images to compare with; set preprocess\.val"):
        export_model(predictor, "onnx-int8", tmp_path / "model.onnx", tmp_path / "empty/data/processed")
    other = Predictor(nn.Identity(), ["cat", "dog"], (8, 8), predictor.source, predictor.device, predictor.dtype)
    with pytest.raises(UserError, match="processed: has other classes or another image size than "):
        export_model(other, "onnx-int8", tmp_path / "model.onnx", tmp_path / "empty/data/processed")
    assert [found.name for found in tmp_path.iterdir()] == ["empty"]


@pytest.mark.slow
def test_too_coarse_or_too_large_is_refused_with_its_figures(
    predictor: Predictor, checkout: Path, tmp_path: Path
) -> None:
    write_striped(tmp_path / "few", width=8, validation=100)
    for model, data in (
        (predictor, tmp_path / "few"),
        (load_predictor(find_model(str(tmp_path / "few/models"))), checkout),
    ):
        with pytest.raises(
            UserError, match=r"[\d.]+% of the size in fp32; validation accuracy [\d.]+%, in fp32 [\d.]+%"
        ):
            export_model(model, "onnx-int8", tmp_path / "model.onnx", data / "data/processed")
    assert [found.name for found in tmp_path.iterdir()] == ["few"]
