"""The scripts in tools/ start from any directory and explain themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

from vision.pipeline.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("search", ["Search for the hyperparameters", "resume an interrupted search"]),
        ("compare", ["Compare the DVC experiments", "--metric NAME", "--each"]),
        ("export", ["Write the trained model as a file", "--format {onnx,onnx-int8,pt2}", "models:/cifar10@champion"]),
    ],
)
def test_help_describes_the_script_in_any_directory(script: str, words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / f"tools/{script}.py"), "--help"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert process.stdout.startswith(f"usage: {script}.py [-h]")
    assert all(word in process.stdout for word in words)
    assert max(map(len, process.stdout.splitlines())) <= 80
