"""tools/predict.py as its users run it: real processes, a model that the stages trained, files of every kind."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from environment import clean_environment
from official_formats import CLASSES, make_set
from photos import make_photos, make_unreadable
from stages import Stages, change_params, small_checkout
from vision.pipeline.paths import ROOT

pytestmark = pytest.mark.slow

COUNT = 1600
"""Test images: three whole batches and a part of one."""
HEADER = ["image", "class", "probability", "unknown", *(f"p_{name}" for name in CLASSES)]


@dataclass(frozen=True)
class Checkout:
    """A checkout with a trained model, and `images`, a folder with its test images as PNG files."""

    root: Path
    stages: Stages
    images: Path

    def start(self, *arguments: object, prelude: str = "") -> subprocess.Popen[str]:
        """Start tools/predict.py in the checkout, after some Python code."""
        script = "tools/predict.py"
        code = f"import runpy, sys\nsys.argv = sys.argv[1:]\n{prelude}\nrunpy.run_path({script!r}, run_name='__main__')"
        command = [sys.executable, *(["-c", code] if prelude else []), script, *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=self.root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()
        )

    def run(self, *arguments: object, status: int = 0, prelude: str = "") -> tuple[str, list[str]]:
        """Run it to its end; returns its output, and the lines on stderr that are no progress bar."""
        process = self.start(*arguments, prelude=prelude)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == status, errors
        assert "Traceback" not in errors
        return output, [line for line in errors.splitlines() if line and "|" not in line]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    folder = tmp_path_factory.mktemp("predict")
    data = make_set(n_train=500, n_test=COUNT)
    with small_checkout(folder, data) as stages:
        root = stages.checkout
        shutil.copytree(ROOT / "tools", root / "tools")
        images = folder / "images"
        images.mkdir()
        for number, pixels in enumerate(data.test_images):
            Image.fromarray(pixels).save(images / f"{number:04}.png")
        yield Checkout(root, stages, images)


@pytest.fixture(scope="module")
def expected(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The CSV file of a run that is not disturbed; one file cannot be read."""
    output = tmp_path_factory.mktemp("expected") / "predictions.csv"
    (checkout.images / "0700.png").write_bytes(b"")
    checkout.run(checkout.images, "--output", output, status=1)
    assert [path.name for path in output.parent.iterdir()] == ["predictions.csv"]
    return output.read_bytes()


def read(path: Path) -> tuple[list[str], np.ndarray]:
    """The column `image`, and the probabilities float64 [N, 10]."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["image"] for row in rows], np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_probabilities_are_those_of_evaluate_with_one_view(
    precision: str, checkout: Checkout, tmp_path: Path
) -> None:
    change_params(checkout.root, train={"precision": precision}, evaluate={"tta": "none"})
    result = checkout.stages.run("evaluate")
    assert result.status == 0, result.errors
    output, errors = checkout.run(
        checkout.images, "--output", tmp_path / "p.csv", "--precision", precision, "--model", "models"
    )
    assert errors == []
    images, probabilities = read(tmp_path / "p.csv")
    assert images == [f"{checkout.images}/{number:04}.png" for number in range(COUNT)]
    _, evaluated = read(checkout.root / "data/predictions/test.csv")
    np.testing.assert_allclose(probabilities, evaluated, rtol=0, atol=1e-6)
    assert np.abs(probabilities - 0.1).max() > 0.01  # the images differ by much more than the tolerance

    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0].split(",") == HEADER
    best = probabilities.argmax(1)
    min_confidence = json.loads((checkout.root / "models/model.json").read_text())["min_confidence"]
    unknown = probabilities.max(1) < min_confidence
    assert 0 < unknown.mean() < 0.5
    for line, index, row in zip(lines[1:], best, probabilities, strict=True):
        assert line.split(",")[1:3] == [CLASSES[index], line.split(",")[4 + index]]
        assert float(line.split(",")[2]) == row[index]
        assert line.split(",")[3] == ("true" if row[index] < min_confidence else "false")
    printed = output.splitlines()
    assert printed[0].split() == ["image", "class", "probability"]
    name = f"unknown ({CLASSES[best[0]]}?)" if unknown[0] else CLASSES[best[0]]
    assert " ".join(printed[1].split()[1:]) == f"{name} {probabilities[0].max():.4f}"
    assert printed[11:13] == ["… and 1,590 more", f"wrote {tmp_path / 'p.csv'}"]


def test_photos_of_every_kind_and_files_that_are_none(checkout: Checkout, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    broken = make_unreadable(tmp_path / "photos" / "broken")
    output, errors = checkout.run(
        tmp_path / "photos", "--output", tmp_path / "p.csv", "--page", tmp_path / "p.html", status=1
    )
    assert read(tmp_path / "p.csv")[0] == sorted(map(str, photos.values()))
    assert [line.split(": ")[1] for line in errors[:-1]] == sorted(map(str, broken.values()))
    assert errors[-1] == f"predict: 3 of {len(photos) + 3} files could not be read and were left out"
    assert "photo.avif" in (tmp_path / "p.html").read_text()
    assert f"wrote {tmp_path / 'p.html'}" in output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nowhere"], 1, "nowhere: no such file or folder"),
        (["stages"], 1, "stages: no images (.avif, "),
        (["{images}", "--model", "nowhere"], 1, "nowhere: expected a folder that train wrote"),
        (["{images}", "--model", "models:/pets@champion"], 1, "mlflow.db does not exist; `dvc repro` makes it"),
        (["{images}", "--output", "stages"], 1, "--output stages: expected a name that ends in .csv"),
        (["{images}", "--output", "{images}/0001.png"], 1, "0001.png: expected a name that ends in .csv"),
        (["{images}", "--output", "folder.csv"], 1, "--output folder.csv: is not a file"),
        (["{images}", "--page", "README.md"], 1, "--page README.md: expected a name that ends in .html"),
        (["{images}", "--page", "device.html"], 1, "--page device.html: is not a file"),
        (["{images}", "--output", "params.yaml/p.csv"], 1, "params.yaml"),
        (["{images}", "--precision", "fp8"], 2, "invalid choice: 'fp8'"),
        ([], 2, "the following arguments are required: PATH"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], status: int, message: str, checkout: Checkout) -> None:
    (checkout.root / "folder.csv").mkdir(exist_ok=True)
    with suppress(FileExistsError):
        os.mkfifo(checkout.root / "device.html")
    before = sorted(checkout.root.iterdir())
    _, errors = checkout.run(*(argument.format(images=checkout.images) for argument in arguments), status=status)
    assert message in errors[-1]
    assert status == 2 or len(errors) == 1
    assert sorted(checkout.root.iterdir()) == before


KILL = """
import os, signal
calls, {name} = iter(range(1, {number})), os.{name}
def kill(*arguments):
    if isinstance(arguments[0], int) or ".partial" in str(arguments[0]):  # not of a library's own file
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.{signal})
    return {name}(*arguments)
os.{name} = kill
"""
"""At the call with this number, a function of `os` kills the process before it does its work."""


@pytest.mark.parametrize(
    ("name", "number", "done"),
    [
        ("fsync", 1, 0),  # after the rows of the first batch, before its line of the journal
        ("fsync", 2, 500),
        ("fsync", 4, 1500),
        ("fsync", 5, COUNT),  # before the rows get their final name
        ("replace", 1, COUNT),
        ("unlink", 1, 0),  # after that, before the journal is removed
    ],
)
def test_a_killed_command_is_continued_to_the_same_bytes(
    name: str, number: int, done: int, checkout: Checkout, expected: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "predictions.csv"
    prelude = KILL.format(name=name, number=number, signal="SIGKILL")
    killed = checkout.start(checkout.images, "--output", output, prelude=prelude)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert output.exists() == (name == "unlink")
    _, errors = checkout.run(checkout.images, "--output", output, status=1)
    assert output.read_bytes() == expected
    continuing = [f"predict: continuing {output}: {done:,} of {COUNT:,} files are done"]
    assert [line for line in errors if "continuing" in line] == (continuing if done else [])
    # The file that could not be read is named again, although its batch was done before.
    assert f"predict: {checkout.images}/0700.png: not an image, or truncated at its beginning" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_kills_at_any_time(checkout: Checkout, expected: bytes, tmp_path: Path) -> None:
    output = tmp_path / "predictions.csv"
    started = time.perf_counter()
    checkout.run(checkout.images, "--output", output, status=1)
    seconds = time.perf_counter() - started
    output.unlink()
    kills = 0
    for share in (0.3, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95):
        process = checkout.start(checkout.images, "--output", output)
        time.sleep(share * seconds)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills
    checkout.run(checkout.images, "--output", output, status=1)
    assert output.read_bytes() == expected


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_command_says_how_to_continue(
    name: str, checkout: Checkout, expected: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "predictions.csv"
    prelude = KILL.format(name="fsync", number=3, signal=name)
    _, errors = checkout.run(checkout.images, "--output", output, status=130, prelude=prelude)
    assert errors == ["predict: interrupted; with --output, the same command continues after the last 500 images"]
    _, errors = checkout.run(checkout.images, "--output", output, status=1)
    assert errors[0] == f"predict: continuing {output}: 1,000 of {COUNT:,} files are done"
    assert output.read_bytes() == expected


def test_rows_of_another_model_or_list_are_not_mixed(checkout: Checkout, expected: bytes, tmp_path: Path) -> None:
    output = tmp_path / "predictions.csv"
    other = tmp_path / "models"
    shutil.copytree(checkout.root / "models", other)
    (tmp_path / "more").mkdir()
    shutil.copy(checkout.images / "0001.png", tmp_path / "more")
    config = (other / "model.json").read_text()
    (other / "model.json").write_text(config.replace('"airplane"', '"plane"'))
    for arguments in (["--model", other], [tmp_path / "more"], ["--precision", "bf16"]):
        prelude = KILL.format(name="fsync", number=3, signal="SIGKILL")
        killed = checkout.start(checkout.images, *arguments, "--output", output, prelude=prelude)
        killed.communicate(timeout=120)
        assert killed.returncode == -signal.SIGKILL
        _, errors = checkout.run(checkout.images, "--output", output, status=1)
        assert errors[0] == (
            f"predict: starting {output} again; the rows of an interrupted run are not used: "
            "it had another model, other images or other settings"
        )
        assert output.read_bytes() == expected


def test_two_commands_run_at_once_but_not_into_one_file(checkout: Checkout, expected: bytes, tmp_path: Path) -> None:
    outputs = [tmp_path / "a.csv", tmp_path / "b.csv"]
    wait = "import os, time; fsync = os.fsync; os.fsync = lambda file: (time.sleep(5), fsync(file))"
    first = checkout.start(checkout.images, "--output", outputs[0], prelude=wait)
    while not (tmp_path / ".a.csv.partial/journal.jsonl").exists():
        assert first.poll() is None
        time.sleep(0.01)
    _, errors = checkout.run(checkout.images / "0001.png", "--output", outputs[0], status=1)
    assert errors == [f"predict: {outputs[0]}: another process writes this file; wait until it ends"]
    checkout.run(checkout.images / "0001.png", "--output", outputs[1])
    assert first.poll() is None
    first.communicate(timeout=120)
    assert outputs[0].read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv"]


def test_a_reader_that_is_gone_does_not_lose_the_file(checkout: Checkout, expected: bytes, tmp_path: Path) -> None:
    process = checkout.start(checkout.images, "--output", tmp_path / "p.csv")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait(120) == 1
    assert (tmp_path / "p.csv").read_bytes() == expected


def test_mlflow_is_not_imported_for_a_folder(checkout: Checkout) -> None:
    listing = "import atexit; atexit.register(lambda: print(*sorted(sys.modules)))"
    output, _ = checkout.run(checkout.images / "0001.png", prelude=listing)
    modules = set(output.splitlines()[-1].split())
    assert "torch" in modules
    assert not modules & {"mlflow", "pandas", "matplotlib", "jinja2", "sqlalchemy", "dvc"}
