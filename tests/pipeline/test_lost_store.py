"""`dvc repro` whose MLflow store goes away in the middle of training."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from project import Project, clone
from servers import MlflowServer, mlflow_server

EPOCHS = 12

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone whose next stage is the training."""
    made = clone(tmp_path_factory.mktemp("lost"))
    made.set(train={"epochs": EPOCHS})
    made.commit("many epochs")
    made.run("dvc", "repro", "preprocess")
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(f"sqlite:///{folder}/server.db", folder, workers=1) as running:
        yield running


def until(process: "subprocess.Popen[str]", words: str) -> None:
    """Read what is printed until these words are."""
    assert process.stdout is not None
    assert any(words in line for line in process.stdout)


def assert_the_run_is_whole(project: Project, uri: str) -> None:
    client = MlflowClient(uri)
    run_id = project.json("metrics/run.json")["mlflow"]["run_id"]
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["ended"]) == ("FINISHED", "finished")
    for metric in ("train/loss", "val/accuracy"):
        assert [entry.step for entry in client.get_metric_history(run_id, metric)] == list(range(1, EPOCHS + 1))
    assert run.data.metrics["test_accuracy"] == project.json("metrics/test.json")["accuracy"]
    assert {file.path for file in client.list_artifacts(run_id)} == {"figures", "metrics", "report"}
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    (version,) = [one for one in client.search_model_versions("name = 'cifar10'") if one.run_id == run_id]
    assert version.source == f"models:/{output.model_id}"
    assert not list((project.root / "unlogged").iterdir())
    assert project.run("git", "status", "--porcelain", "--untracked-files=all", "unlogged") == ""


def test_a_server_that_is_killed_and_is_back_when_all_is_over(prepared: Project, server: MlflowServer) -> None:
    project = replace(prepared, variables={"MLFLOW_TRACKING_URI": server.address, "OMP_NUM_THREADS": "1"})
    process = project.start("dvc", "repro")
    until(process, "epoch   3:")
    server.kill()
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert "Traceback" not in printed
    run_id = project.json("metrics/run.json")["mlflow"]["run_id"]
    lines = [line for line in printed.splitlines() if f"record(s) of run {run_id}, in " in line]
    assert len(lines) >= 3  # train, evaluate, report
    assert all(f"MLflow: {server.address}: " in line and "; not logged yet: " in line for line in lines)
    server.start()
    assert "MLflow: logged " in project.run("dvc", "repro", "-sf", "report")
    assert_the_run_is_whole(project, server.address)


LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
time.sleep(30)
"""


def test_a_database_that_is_locked_for_half_a_minute(prepared: Project) -> None:
    project = replace(prepared, variables={"OMP_NUM_THREADS": "1"})
    process = project.start("dvc", "repro", "-f")
    until(process, "epoch   3:")
    locking = project.start("python", "-c", LOCK, str(Path(project.root, "mlflow.db")))
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert "Traceback" not in printed
    assert "database is locked; not logged yet: " in printed
    assert locking.wait() == 0
    project.run("dvc", "repro", "-sf", "report")
    assert_the_run_is_whole(project, f"sqlite:///{project.root}/mlflow.db")
