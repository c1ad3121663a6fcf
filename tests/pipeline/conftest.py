"""The clones that the tests of the pipeline run in."""

import pytest

from project import Project, clone


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One clone in which `dvc repro` has run once; the tests of this folder go on from there, in order."""
    made = clone(tmp_path_factory.mktemp("pipeline"))
    made.run("dvc", "repro")
    made.commit("a run")
    return made


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which nothing has run."""
    return clone(tmp_path_factory.mktemp("fresh"))
