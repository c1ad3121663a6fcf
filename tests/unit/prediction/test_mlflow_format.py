import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
import yaml
from PIL import Image
from torch import nn

from vision.pipeline.paths import ROOT
from vision.prediction.mlflow_format import ModelSettings, save_mlflow_model

CLASSES = ["cat", "dog", "frog"]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


class Net(nn.Module):
    """uint8 [N, 32, 32, 3] -> probabilities of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images.permute(0, 3, 1, 2).float() / 255).softmax(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in MLflow's format, and with images and the network's own probabilities."""
    folder = tmp_path_factory.mktemp("saved")
    network = Net().eval()
    with torch.inference_mode():
        expected = network(torch.tensor(IMAGES)).numpy()
    settings = ModelSettings(CLASSES, float(np.median(expected.max(1))) + 1e-5)  # three of the five are unknown
    save_mlflow_model(folder / "model", network, IMAGES, settings)
    (folder / "temporary").mkdir()
    np.save(folder / "images.npy", IMAGES)
    np.save(folder / "expected.npy", expected)
    for number, pixels in enumerate(IMAGES):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run(folder: Path, script: str, **variables: str) -> str:
    """What a script prints that runs in the folder, and cannot import this repository's code."""
    environment = {**os.environ, "PYTHONPATH": "", **variables}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD = """
import numpy as np, mlflow, pandas as pd, torch
files = [open(f"{number}.png", "rb").read() for number in range(5)]
images, expected = np.load("images.npy"), np.load("expected.npy")
network, model = mlflow.pytorch.load_model("model"), mlflow.pyfunc.load_model("model")
for count in (1, 2, 5):
    np.testing.assert_allclose(network(torch.tensor(images[:count])).detach(), expected[:count], atol=1e-6)
    table = model.predict(pd.DataFrame({"image": files[:count]}))
    assert list(table) == ["class", "probability", "unknown", "p_cat", "p_dog", "p_frog", "error"]
    np.testing.assert_allclose(table[["p_cat", "p_dog", "p_frog"]], expected[:count], atol=1e-6)
    np.testing.assert_allclose(table["probability"], expected[:count].max(1), atol=1e-6)
    assert list(table["class"]) == [["cat", "dog", "frog"][i] for i in expected[:count].argmax(1)]
    assert list(table["unknown"]) == list(expected[:count].max(1) < np.median(expected.max(1)) + 1e-5)
    assert table["error"].isna().all()
broken = model.predict(pd.DataFrame({"image": [files[0], b"text", files[1][:99]]}))
np.testing.assert_allclose(broken.loc[0, ["p_cat", "p_dog", "p_frog"]].astype(float), expected[0], atol=1e-6)
assert broken.loc[1:].drop(columns="error").isna().all(axis=None)
print(broken["error"].tolist()[1:])
print(model.metadata.metadata)
"""


@pytest.mark.slow
def test_the_model_loads_elsewhere_for_any_batch_size_without_this_code_or_pickle(saved: Path) -> None:
    errors, metadata = run(saved, LOAD, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false").splitlines()
    assert errors.startswith("['not an image, or truncated at its beginning', '")
    assert metadata.startswith(str({"classes": CLASSES, "image_shape": [32, 32, 3]})[:-1] + ", 'min_confidence': 0.")


def test_the_files_of_a_model(saved: Path) -> None:
    model = saved / "model"
    names = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert {"MLmodel", "mlflow_model.py", "code/image_file.py", "artifacts/network/data/model.pt2"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pth", ".lock")) or "pyproject" in name]
    assert f"torch=={torch.__version__.partition('+')[0]}" in (model / "requirements.txt").read_text().split()
    assert str(ROOT) not in (model / "MLmodel").read_text()
    signature = yaml.safe_load((model / "MLmodel").read_text())["signature"]
    assert json.loads(signature["inputs"]) == [{"type": "binary", "name": "image", "required": True}]
    names_of_columns = [column["name"] for column in json.loads(signature["outputs"])]
    assert names_of_columns == ["class", "probability", "unknown", "p_cat", "p_dog", "p_frog", "error"]


SAVE = """
import os, sys, tempfile
from pathlib import Path
from typing import Any
import numpy as np, torch
from vision.prediction.mlflow_format import ModelSettings, save_mlflow_model
class Net(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :2].float().softmax(1)
save_mlflow_model(Path("small"), Net().eval(), np.zeros((2, 8, 8, 3), np.uint8), ModelSettings(["cat", "dog"], None))
assert not {"TORCHINDUCTOR_CACHE_DIR", "MLFLOW_UV_AUTO_DETECT"} & set(os.environ)
print(os.listdir(tempfile.gettempdir()))
"""


@pytest.mark.slow
def test_saving_leaves_nothing_in_the_temporary_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert run(saved, SAVE, TMPDIR=str(saved / "temporary"), PYTHONPATH=str(ROOT / "stages")) == "[]\n"


@pytest.mark.slow
def test_mlflows_own_server_takes_base64(saved: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        "model",
        "--env-manager",
        "local",
        "-p",
        str(port),
    ]
    variables = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        command, cwd=saved, env=variables, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            for _ in range(600):
                with suppress(requests.ConnectionError):
                    if requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok:
                        break
                time.sleep(0.1)
            images = [(saved / "0.png").read_bytes(), b"text"]
            rows = [[base64.b64encode(image).decode()] for image in images]
            body: Any = {"dataframe_split": {"columns": ["image"], "data": rows}}
            answer = requests.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=60)
            assert answer.ok, answer.text
        finally:
            os.killpg(server.pid, signal.SIGTERM)
    first, second = answer.json()["predictions"]
    expected = np.load(saved / "expected.npy")[0]
    assert [first[f"p_{name}"] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-6)
    assert first["error"] is None
    assert second["error"].startswith("not an image")
    assert {second[name] for name in ("class", "probability", "unknown", "p_cat", "p_dog", "p_frog")} == {None}


def test_the_input_example_is_an_image(saved: Path) -> None:
    example = json.loads((saved / "model/input_example.json").read_text())
    assert example["columns"] == ["image"]
    decoded = Image.open(io.BytesIO(base64.b64decode(example["data"][0][0])))
    np.testing.assert_array_equal(np.asarray(decoded), IMAGES[0])
