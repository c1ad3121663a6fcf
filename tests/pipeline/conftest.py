"""Small clones of the project for the tests in this folder."""

import pytest

from project import Project, clone


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which `dvc repro` has run once. Tests share it and continue from each other's state, in order."""
    project = clone(tmp_path_factory.mktemp("pipeline"))
    project.run("dvc", "repro")
    project.commit("a run")
    return project


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which no stage has run."""
    return clone(tmp_path_factory.mktemp("fresh"))
