"""tools/spark_predict.py with real Spark: executors in processes of their own, the model from MLflow."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vision.artifacts.trained_model import ModelConfig, build_model, save_model
from vision.pipeline.params import Tracking, load_params
from vision.pipeline.paths import ROOT
from vision.prediction.mlflow_format import ModelSettings, save_mlflow_model
from vision.prediction.predictor import find_model, load_predictor
from vision.storage.arrays import Stats
from vision.tracking import mlflow_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
]
pyspark = pytest.importorskip("pyspark")

CLASSES = ["cat", "dog", "frog"]
PROBABILITIES = [f"p_{name}" for name in CLASSES]
TOOL = str(ROOT / "tools/spark_predict.py")
CHAMPION = "models:/pets@champion"
MIN_CONFIDENCE = 0.36
"""Among the confidences of the network, which has random weights."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models/, mlflow.db with a champion, images/, and spark/ as SPARK_HOME."""
    folder = tmp_path_factory.mktemp("spark")
    write_images(folder / "images")
    (folder / "models").mkdir()
    torch.manual_seed(0)
    options = load_params().model.plain_cnn.model_dump()
    images = (CLASSES, [32, 32, 3], [0.5] * 3, [0.25] * 3)
    config = ModelConfig(*images, name="plain_cnn", options=options, min_confidence=MIN_CONFIDENCE)
    save_model(folder / "models", build_model(config), config)
    network = load_predictor(find_model(str(folder / "models"))).network.cpu()
    tracking = Tracking(enabled=True, experiment="pets", registry=True, tensorboard=False)
    stats = Stats(CLASSES, [32, 32, 3], [0.5] * 3, [0.25] * 3, split_digest="ab" * 32)
    example = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        with mlflow_run.training_run(load_params().model_copy(update={"tracking": tracking}), stats) as run:
            run.log_model(
                lambda path: save_mlflow_model(path, network, example, ModelSettings(CLASSES, MIN_CONFIDENCE))
            )
            run.register_model(0.75)
    # The workers of a local cluster write to a folder in SPARK_HOME, which would be the installed package.
    (folder / "spark").mkdir()
    for path in Path(pyspark.__file__).parent.iterdir():
        (folder / "spark" / path.name).symlink_to(path)
    return folder


def write_images(folder: Path) -> None:
    """200 PNG files in two folders, one JPEG, one file that is no image, and one that does not count as an image."""
    (folder / "more").mkdir(parents=True)
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / ("more" if number % 2 else "") / f"{number}.png")
    gradient = np.linspace(0, 255, 300 * 200 * 3, dtype=np.uint8).reshape(200, 300, 3)
    Image.fromarray(gradient).save(folder / "a photo é.JPG")
    (folder / "broken.png").write_bytes(b"text")
    (folder / "notes.txt").write_text("text")


def spark_submit(folder: Path, master: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in the folder, where `vision` cannot be imported."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": "",
        "SPARK_HOME": str(folder / "spark"),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    command = ["spark-submit", "--master", master, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def check_predictions(folder: Path, table: pd.DataFrame) -> None:
    """Compare a row for each image with what the predictor computes."""
    assert list(table) == ["image", "class", "probability", "unknown", *PROBABILITIES, "error"]
    paths = [path for path in (folder / "images").rglob("*") if path.is_file() and path.name != "notes.txt"]
    assert sorted(table["image"]) == sorted(f"file:{path}" for path in paths)
    broken = table["image"].str.endswith("/broken.png")
    assert table.loc[broken, "error"].tolist() == ["not an image, or truncated at its beginning"]
    assert table.loc[broken].drop(columns=["image", "error"]).isna().all(axis=None)
    good = table[~broken]
    predictor = load_predictor(find_model(str(folder / "models")))
    contents = [Path(image.removeprefix("file:")).read_bytes() for image in good["image"]]
    expected = predictor.predict(np.stack([predictor.read_pixels(content) for content in contents]))
    np.testing.assert_allclose(good[PROBABILITIES], expected, atol=1e-6)
    np.testing.assert_allclose(good["probability"], expected.max(1), atol=1e-6)
    assert good["unknown"].tolist() == [predictor.is_unknown(probability) for probability in expected.max(1)]
    assert good["class"].tolist() == [CLASSES[index] for index in expected.argmax(1)]
    assert good["error"].isna().all()


@pytest.mark.soak
def test_two_executors_compute_what_the_predictor_computes(folder: Path) -> None:
    done = spark_submit(folder, "local-cluster[2,1,2048]", TOOL, "images", "predictions", "--model", CHAMPION)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("202 images, 1 errors, ")
    assert done.stdout.endswith(" images per second: predictions\n")
    assert "\tat " not in done.stderr
    parts = list((folder / "predictions").glob("*.parquet"))
    assert len(parts) == 2
    check_predictions(folder, pd.read_parquet(folder / "predictions"))


def test_images_in_a_table_and_a_model_in_a_folder(folder: Path) -> None:
    paths = [path for path in (folder / "images").rglob("*") if path.is_file() and path.name != "notes.txt"]
    packed = pd.DataFrame(
        {"path": [f"file:{path}" for path in paths], "content": [path.read_bytes() for path in paths]}
    )
    packed.to_parquet(folder / "packed.parquet")
    arguments = ("packed.parquet", "from_table", "--format", "parquet", "--model", "models")
    done = spark_submit(folder, "local[1]", TOOL, *arguments)
    assert done.returncode == 0, done.stderr
    check_predictions(folder, pd.read_parquet(folder / "from_table"))


def test_the_code_in_the_documentation(folder: Path) -> None:
    page = (ROOT / "docs/use.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", page.partition("## Batches on Spark")[2], re.M | re.S)[0]
    for old, new in {"models:/cifar10@champion": CHAMPION, '"predictions"': '"from_page"'}.items():
        assert old in code
        code = code.replace(old, new)
    (folder / "page.py").write_text(code)
    done = spark_submit(folder, "local[1]", "page.py")
    assert done.returncode == 0, done.stdout + done.stderr
    check_predictions(folder, pd.read_parquet(folder / "from_page"))


MISTAKES = {
    ("nowhere", "new", CHAMPION): "nowhere: does not exist",
    ("images", "images", CHAMPION): "images: exists already; give a new folder, or delete it",
    ("images", "new", "models:/dogs@champion"): "models:/dogs@champion: not in sqlite:.*",
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.items(), ids=["input", "output", "model"])
def test_a_mistake_is_one_line(folder: Path, arguments: tuple[str, str, str], message: str) -> None:
    images, output, model = arguments
    done = spark_submit(folder, "local[1]", TOOL, images, output, "--model", model)
    assert done.returncode == 1
    # spark-submit prints on stdout what the script prints on stderr.
    assert re.fullmatch(f"spark_predict: {message}\n", done.stdout)
    assert "\tat " not in done.stderr
    assert not (folder / "new").exists()
