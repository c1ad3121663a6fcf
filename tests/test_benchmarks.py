"""The benchmark scripts run, on data so small that their figures mean nothing."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import speed
import yaml

from vision.stage import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """6,000 images to train on, whose class is their brightness, and 100 to test."""
    for split, count in {"train": 6000, "test": 100}.items():
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.broadcast_to((labels * 25)[:, None, None, None], (count, 32, 32, 3))
        np.save(tmp_path / f"{split}_images.npy", images)
        np.save(tmp_path / f"{split}_labels.npy", labels)
    return tmp_path


@pytest.mark.parametrize("validate", [[], ["--validate"]])
def test_speed_prints_a_table_of_a_recipe(data: Path, tmp_path: Path, validate: list[str]) -> None:
    recipe = tmp_path / "tiny"
    recipe.write_text(
        "-S model.widths=[8,8]\n-S train.epochs=1\n-S train.batch_size=50\n-S train.image_scales=[0.25]\n"
    )
    arguments = ["--recipe", str(recipe), "--data", str(data), "--rounds", "1", "--repeats", "2", *validate]
    process = run("benchmarks/speed.py", *arguments)
    assert process.returncode == 0, process.stderr
    row = next(line for line in process.stdout.splitlines() if line.startswith("| tiny"))
    averaged, one_view, runs, seconds, *_ = row.split(" | ")[1:]
    assert all(re.fullmatch(r"\d+\.\d\d% ± \d+\.\d\d", cell) for cell in (averaged, one_view))
    assert runs == "2"
    assert float(seconds) > 0


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    process = run("benchmarks/speed.py", "--data", str(tmp_path))
    assert (
        process.stderr == f"speed.py: {tmp_path}/train_images.npy is not there; `dvc repro preprocess` makes data/raw\n"
    )
    (tmp_path / "train_images.npy").touch()
    process = run("benchmarks/speed.py", "--data", str(tmp_path), "--airbench", str(tmp_path))
    assert process.stderr == f"speed.py: --airbench: {tmp_path}/airbench94_muon.py is not there\n"


def test_params_are_read_without_a_yaml_library_as_with_one(tmp_path: Path) -> None:
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    seed = {"seed": document.pop("seed")}
    assert speed.settings(ROOT / "params.yaml", None) == {"": seed, **document}
    recipe = tmp_path / "recipe"
    recipe.write_text("-S train.lr=0.5\n-S model.widths=[1,2]\n-S seed=3\n-S train.flip=none\n")
    changed = speed.settings(ROOT / "params.yaml", recipe)
    assert (changed["train"]["lr"], changed["model"]["widths"], changed[""]["seed"]) == (0.5, [1, 2], 3)
    assert changed["train"]["flip"] == "none"
    (tmp_path / "params.yaml").write_text("train:\n  image_scales:\n  - 1.0\n")
    with pytest.raises(ValueError, match="line 2: expected `key: value`"):
        speed.settings(tmp_path / "params.yaml", None)


def test_step_prints_its_tables() -> None:
    process = run("benchmarks/step.py", "--rounds", "1", "--steps", "1", "--batch-size", "8")
    assert process.returncode == 0, process.stderr
    assert "kept / returned: median" in process.stdout
    assert "convolution" in process.stdout
