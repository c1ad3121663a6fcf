import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vision.artifacts.trained_model import ModelConfig, build_model, save_model
from vision.pipeline.errors import UserError
from vision.pipeline.params import Tracking, load_params
from vision.prediction.mlflow_format import ModelSettings, save_mlflow_model
from vision.prediction.predictor import find_model, load_predictor
from vision.storage.arrays import Stats
from vision.tracking import mlflow_run

CLASSES = ["cat", "dog", "frog"]
IMAGES = np.random.default_rng(0).integers(0, 256, (1001, 32, 32, 3), dtype=np.uint8)
CONFIG = ModelConfig(
    CLASSES, [32, 32, 3], [0.5] * 3, [0.25] * 3, name="plain_cnn", options=load_params().model.plain_cnn.model_dump()
)
ON = Tracking(enabled=True, experiment="pets", registry=True, tensorboard=False)


@pytest.fixture(scope="module")
def expected(models: Path) -> np.ndarray:
    """The probabilities of all images."""
    network = nn.Sequential(build_model(CONFIG), nn.Softmax(1)).eval()
    network[0].load_state_dict(torch.load(models / "model.pt", weights_only=True))
    with torch.inference_mode():
        return network(torch.from_numpy(IMAGES)).numpy()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, as `train` writes it."""
    folder = tmp_path_factory.mktemp("checkout") / "models"
    folder.mkdir()
    torch.manual_seed(0)
    save_model(folder, build_model(CONFIG), CONFIG)
    return folder


def encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_folder(models: Path, expected: np.ndarray) -> None:
    predictor = load_predictor(find_model(str(models)))
    assert (predictor.classes, predictor.image_size) == (CLASSES, (32, 32))
    assert (predictor.source.name, predictor.source.version) == ("models", "")
    np.testing.assert_allclose(predictor.predict(IMAGES), expected, atol=1e-6)
    np.testing.assert_array_equal(predictor.read_pixels(encode(IMAGES[0])), IMAGES[0])


def test_a_precision_that_the_device_does_not_support_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^precision: fp16 needs a CUDA device, .*use auto, bf16 or fp32$"):
        load_predictor(find_model(str(models)), "fp16")


@pytest.mark.slow
def test_models_in_mlflow(models: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{models.parent}/mlflow.db")
    network = load_predictor(find_model(str(models))).network
    stats = Stats(CLASSES, [32, 32, 3], [0.5] * 3, [0.25] * 3, split_digest="ab" * 32)
    with mlflow_run.training_run(load_params().model_copy(update={"tracking": ON}), stats) as run:
        run.log_model(lambda path: save_mlflow_model(path, network, IMAGES[:2], ModelSettings(CLASSES, 0.5)))
        run.register_model(0.75)
    run_id = run.record["mlflow"]["run_id"]
    found = {
        "models:/pets@champion": ("models:/pets/1", "pets", "1"),
        "models:/pets/1": ("models:/pets/1", "pets", "1"),
        f"runs:/{run_id}/model": (f"runs:/{run_id}/model", "model", run_id),
    }
    for model, (uri, name, version) in found.items():
        source = find_model(model)
        assert (source.uri, source.name, source.version) == (uri, name, version)
        predictor = load_predictor(source)
        assert (predictor.classes, predictor.image_size) == (CLASSES, (32, 32))
        np.testing.assert_allclose(predictor.predict(IMAGES), expected, atol=1e-6)
    for model in ("models:/pets@best", "models:/dogs@champion"):
        with pytest.raises(UserError, match=f"{model}: not in sqlite:.*not found"):
            find_model(model)
    for model in ("models:/pets/7", f"runs:/{run_id}/other", f"runs:/{'0' * 32}/model"):
        with pytest.raises(UserError, match=f"{model}: not in sqlite:"):
            load_predictor(find_model(model))


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"model\.json.*dvc repro"):
        load_predictor(find_model(str(tmp_path)))
    for missing in (tmp_path / "none", Path(__file__)):
        with pytest.raises(UserError, match=f"{missing}: expected a folder that train wrote"):
            load_predictor(find_model(str(missing)))
    with pytest.raises(UserError, match="models:/cifar10: expected models:/NAME@ALIAS"):
        find_model("models:/cifar10")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match=r"models:/cifar10@champion: .*mlflow\.db does not exist; `dvc repro`"):
        find_model("models:/cifar10@champion")
    assert not list(tmp_path.iterdir())
