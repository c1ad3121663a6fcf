"""The rules that the README and dvc.yaml state about the code, checked on the code."""

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from vision.pipeline.paths import ROOT

STAGES = ("download", "preprocess", "train", "evaluate", "report")
CORE = {
    "disk",
    "augment",
    "warp",
    "color",
    "convolution",
    "mix",
    "batches",
    "device",
    "speed",
    "models",
    "optim",
    "average",
    "infer",
    "meter",
    "training",
    "checkpoint",
    "fit",
}
MLFLOW = {"registry", "store", "delivery", "tracking"}
NO_DEPENDENCY = {
    "schema",
    "params",
    "stage",
    "progress",
    "trials",
    "workers",
    "run",
    "events",
    "origin",
    "outbox",
    *MLFLOW,
}
"""What changes no output, so that no stage depends on it; dvc.yaml says so at its top."""


def imports(path: Path) -> set[str]:
    """All modules that a file names in its imports, those inside functions and type checks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(room: str) -> list[Path]:
    path = ROOT / "stages/vision" / room
    return sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def rooms_of(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("vision.")}


def reached(room: str) -> set[str]:
    """A room and all that it imports, directly or through others."""
    found, new = set(), {room}
    while new:
        found |= new
        new = {other for name in new for file in files(name) for other in rooms_of(file)} - found
    return found


def all_rooms() -> set[str]:
    names = {path.stem for path in (ROOT / "stages/vision").iterdir() if path.suffix == ".py" or path.is_dir()}
    return names - {"__init__", "__pycache__"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_code_that_it_runs(stage: str) -> None:
    # A room that is reached only through one that changes no output changes none either.
    direct = {room for room in rooms_of(ROOT / f"stages/{stage}.py") if room not in NO_DEPENDENCY}
    wanted = {room for name in direct for room in reached(name)} - NO_DEPENDENCY
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    declared = {dep for dep in deps if re.fullmatch(r"stages/vision/\w+(\.py)?", dep)}
    declared = {Path(dep).stem for dep in declared}
    assert declared == wanted
    assert f"stages/{stage}.py" in deps


@pytest.mark.parametrize("room", sorted(CORE))
def test_the_core_imports_torch_and_the_standard_library_alone(room: str) -> None:
    for file in files(room):
        outside = {name.split(".")[0] for name in imports(file)} - set(sys.stdlib_module_names)
        # The networks of torchvision come from there, when one is asked for.
        assert outside <= {"torch", "vision"} | ({"torchvision"} if file.stem == "ready_made" else set())
        assert rooms_of(file) <= CORE


def test_only_the_rooms_for_it_import_mlflow() -> None:
    importing = {
        room for room in all_rooms() if any("mlflow" in name for file in files(room) for name in imports(file))
    }
    assert importing == MLFLOW
    assert not any("mlflow" in name for stage in STAGES for name in imports(ROOT / f"stages/{stage}.py"))


def test_the_readme_lists_every_room_and_each_imports_only_rooms_above_it() -> None:
    listed = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", (ROOT / "README.md").read_text(), re.M)
    assert set(listed) == all_rooms()
    for position, room in enumerate(listed):
        for file in files(room):
            assert rooms_of(file) <= set(listed[: position + 1]), room


CODE = sorted(path for folder in ("stages", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles(path: Path) -> None:
    """Except for the class in cifar.py that makes only arrays and plain values, for verified files."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
            if name == "torch.load" or name.endswith(("get_state_dict", "load_state_dict_from_url")):
                assert given.get("weights_only") == "True", node.lineno
            assert given.get("allow_pickle", "False") == "False", node.lineno
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            assert not re.match(r"(pickle|marshal|shelve|joblib)\.(loads?|open)\b", name), node.lineno
            assert not name.endswith("Unpickler") or path.name == "cifar.py", node.lineno
