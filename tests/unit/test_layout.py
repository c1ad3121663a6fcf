"""The rules about the code that import-linter's contracts in pyproject.toml do not cover."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
import yaml

from vision.pipeline.paths import ROOT

GRAPH = grimp.build_graph("vision", include_external_packages=True, cache_dir=None)
STAGES = ("download", "preprocess", "train", "evaluate", "report")
CHANGES_NO_OUTPUT = {"pipeline", "tracking", "prediction", "search"}
"""Packages that no stage depends on: they check parameters, record runs and models, and schedule trials."""


def packages(modules: set[str]) -> set[str]:
    """The packages of `vision` among modules or names in them."""
    return {name.split(".")[1] for name in modules if name.startswith("vision.")}


def imported_packages(script: Path) -> set[str]:
    """The packages of `vision` that a script imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(script.read_text())))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return packages(found)


def needed_packages(stage: str) -> set[str]:
    """The packages that a stage's outputs come from: those it imports, and those that these import, and so on."""
    found: set[str] = set()
    new = imported_packages(ROOT / f"stages/{stage}.py")
    # A package that is imported only by one that changes no output changes none either.
    while new := new - CHANGES_NO_OUTPUT - found:
        found |= new
        modules = {module for package in new for module in GRAPH.find_descendants(f"vision.{package}")}
        new = packages({name for module in modules for name in GRAPH.find_modules_directly_imported_by(module)})
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_deps_are_the_packages_that_a_stage_needs(stage: str) -> None:
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    declared = {Path(dep).name for dep in deps if dep.startswith("stages/vision/")}
    assert declared == needed_packages(stage)
    assert f"stages/{stage}.py" in deps


def test_the_contract_of_the_core_forbids_every_other_package() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (forbidden,) = [one["forbidden_modules"] for one in contracts if one.get("source_modules") == ["vision.core"]]
    external = {name.split(".")[0] for name in GRAPH.modules} - {"vision", *sys.stdlib_module_names}
    assert external - {"torch"} <= set(forbidden)


CODE = sorted(path for folder in ("stages", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


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


MAX_PARAMETERS = 6


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_function_has_at_most_six_parameters(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [one.arg for one in parameters if one.arg not in ("self", "cls")]
            assert len(names) <= MAX_PARAMETERS, f"line {node.lineno}: {node.name}: pass a dataclass"


def test_the_core_does_not_print() -> None:
    for path in (ROOT / "stages/vision/core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                where = f"{path.name}, line {node.lineno}"
                assert ast.unparse(node.func) not in ("print", "sys.stdout.write"), (
                    f"{where}: use a callback or logging"
                )


def test_the_readme_of_the_tests_names_tests_that_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "tests/README.md").read_text())
    assert len(named) > 20
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / "tests" / file).read_text()]
    assert missing == []
