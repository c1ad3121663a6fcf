"""requirements.txt, for people who use pip, follows pyproject.toml."""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vision.pipeline.paths import ROOT

LINES = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def pinned_versions() -> dict[str, list[Requirement]]:
    """The lines by the name of their package; some packages have a line per Python version."""
    found: dict[str, list[Requirement]] = {}
    for line in LINES:
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_each_dependency_is_pinned_to_a_version_in_its_range(dependency: str) -> None:
    wanted = Requirement(dependency)
    pins = pinned_versions().get(canonicalize_name(wanted.name), [])
    assert any(pin.marker is None or pin.marker.evaluate() for pin in pins), "update requirements.txt"
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.version in wanted.specifier, "update requirements.txt"


def test_every_line_is_one_exact_version_without_an_address() -> None:
    assert LINES
    for line in LINES:
        requirement = Requirement(line)
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], line
        assert requirement.url is None, line
        assert "://" not in line


def test_there_are_no_development_dependencies() -> None:
    assert not {"pytest", "mypy", "ruff", "hypothesis", "playwright"} & pinned_versions().keys()
