"""tools/export.py as its users run it, in a checkout with a small trained model."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from striped_model import write_striped
from vision.pipeline.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code with models/ and data/processed."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("stages", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_striped(folder)
    return folder


def export(checkout: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / "tools/export.py"), *arguments]
    return subprocess.run(command, cwd=cwd or checkout, capture_output=True, text=True)


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("file_format", "name", "words"),
    [
        ("onnx", "model.onnx", r"probabilities of 1,008 images differ by at most \S+, no change of class"),
        ("pt2", "model.pt2", r"probabilities of 1,008 images differ by at most \S+, no change of class"),
        ("onnx-int8", "model-int8.onnx", r"2\d\.\d% of the size in fp32; validation accuracy \S+%, in fp32 .*"),
    ],
)
def test_a_file_is_written_from_any_folder(
    file_format: str, name: str, words: str, checkout: Path, tmp_path: Path
) -> None:
    process = export(checkout, "--format", file_format, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    line, done = process.stdout.splitlines()
    path = checkout / "models" / name
    assert re.fullmatch(rf"{re.escape(str(path))}: {path.stat().st_size / 1e6:.2f} MB; {words}", line)
    assert done.startswith("export: done in ")
    assert [part for part in re.split(r"[\r\n]", process.stderr) if part and not part.startswith("export:")] == []
    assert listing(tmp_path) == set()
    assert not {found for found in listing(checkout / "models") if found.startswith(".")}


def test_mistakes_are_one_line(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "model.onnx").write_text("text")
    cases = {
        ("--format=onnx", "--model=nothing"): r"export: nothing: expected a folder that train wrote .*",
        ("--format=onnx", "--model=models:/pets@champion"): r"export: models:/pets@champion: .*mlflow\.db does not .*",
        ("--format=onnx", f"--model={tmp_path}/model.onnx"): r"export: .*ONNX Runtime cannot load it .*",
        ("--format=pt2", f"--output={tmp_path}/file/model.pt2"): r"export: .*file.*: (Not a directory|File exists).*",
        ("--format=pt2", f"--output={tmp_path}"): r"export: .*: Is a directory.*",
    }
    for arguments, line in cases.items():
        process = export(checkout, *arguments)
        assert process.returncode == 1
        assert process.stdout == ""
        assert re.fullmatch(line, process.stderr.strip()), process.stderr
    assert listing(tmp_path) == {"file", "model.onnx"}


def test_eight_bits_without_data_are_one_line(checkout: Path, tmp_path: Path) -> None:
    shutil.copytree(checkout, tmp_path / "copy", ignore=shutil.ignore_patterns("data"))
    process = export(tmp_path / "copy", "--format", "onnx-int8")
    assert process.returncode == 1
    assert process.stderr == f"export: {tmp_path}/copy/data/processed/stats.json: not found; `dvc repro` makes it\n"
