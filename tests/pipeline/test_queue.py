"""Two experiments that two workers of DVC's queue run at the same time, and their runs in MLflow.

The tests share one clone and depend on each other's results, in the order of this file.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from project import Project, clone
from queue_checks import CHECKS, count_results, find_wrong, list_commits, queue_experiments, run_queue
from servers import mlflow_server

pytestmark = pytest.mark.slow

ALONE = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
"""The environment without the share of the cores that the tests set for themselves; it would be left as it is."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which two workers have each run an experiment, at the same time."""
    made = clone(tmp_path_factory.mktemp("queue"))
    made.run("dvc", "repro", "preprocess")
    made.commit("the data")
    queue_experiments(made, "seed=range(2)", "train.epochs=1")
    run_queue(made)
    return made


@pytest.fixture(scope="module")
def names(project: Project) -> list[str]:
    return list(list_commits(project))


@pytest.fixture(scope="module")
def client(project: Project) -> MlflowClient:
    """Of the store that the experiments wrote to."""
    return MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")


def runs(client: MlflowClient, **options: Any) -> list[Run]:
    experiment = client.get_experiment_by_name("cifar10")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], **options))


def wrong(project: Project, names: list[str]) -> list[str]:
    return find_wrong(count_results(project, names))


@pytest.mark.timeout(600)
def test_each_is_a_whole_run_in_the_main_checkout(project: Project, names: list[str]) -> None:
    assert len(names) == 2
    assert wrong(project, names) == []


def test_each_has_its_share_of_the_cores(client: MlflowClient) -> None:
    program = "import torch; print(torch.get_num_threads())"
    alone = int(subprocess.check_output([sys.executable, "-c", program], env=ALONE))
    assert [int(run.data.tags["threads"]) for run in runs(client)] == [max(1, alone // 2)] * 2


def test_what_is_missing_is_counted(project: Project, names: list[str], client: MlflowClient) -> None:
    (run,) = runs(client, max_results=1)
    client.set_tag(run.info.run_id, "dvc.apply", "dvc exp apply another")
    left = project.root / ".dvc/tmp/exps/tmpx/mlflow.db"
    left.parent.mkdir()
    left.touch()
    assert wrong(project, names) == [
        "runs with tags: 1, expected 2",
        "leftover copies and stores: 2, expected 0",
    ]
    client.set_tag(run.info.run_id, "dvc.apply", run.data.tags["dvc.apply"])
    left.unlink()
    left.parent.rmdir()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server."""
    with mlflow_server(f"sqlite:///{tmp_path}/server.db", tmp_path, workers=1) as server:
        yield server.address


def test_an_experiment_from_a_subdirectory_in_a_copy_is_whole_on_a_server(
    project: Project, client: MlflowClient, server: str
) -> None:
    here = len(runs(client))
    subdirectory = replace(project, root=project.root / "stages")
    # DVC takes both files from the working directory otherwise.
    words = ["--temp", "--name", "served", "-S", "../params.yaml:train.epochs=1", "../dvc.yaml"]
    subdirectory.run("env", f"MLFLOW_TRACKING_URI={server}", "dvc", "exp", "run", *words)
    remote = MlflowClient(server)
    (run,) = runs(remote)
    assert run.info.run_name == "served"
    assert [what for what, check in CHECKS.items() if not check(project, remote, run)] == []
    assert remote.get_model_version_by_alias("cifar10", "champion").run_id == run.info.run_id
    record = yaml.safe_load(project.run("git", "show", f"{list_commits(project)['served']}:metrics/run.json"))
    page = f"{server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
    assert (record["mlflow"]["tracking_uri"], record["mlflow"]["page"]) == (server, page)
    assert len(runs(client)) == here
    assert not (subdirectory.root / "mlflow.db").exists()


def test_from_a_run_in_mlflow_back_to_its_files_and_to_the_same_model_again(
    project: Project, client: MlflowClient
) -> None:
    run, *_ = runs(client, order_by=["metrics.best_val_loss ASC"])
    tags = run.data.tags
    commit = project.run("git", "rev-parse", "HEAD").strip()
    assert (tags["mlflow.source.git.commit"], tags["dvc.baseline_rev"]) == (commit, commit)
    assert tags["mlflow.source.git.dirty"] == "true", "its parameters differ from those of the commit"

    project.run(*tags["dvc.apply"].split())
    assert project.json("metrics/run.json")["mlflow"]["run_id"] == run.info.run_id
    assert project.json("metrics/run.json")["mlflow"]["name"] == tags["dvc.experiment"]
    processed, *_ = project.lock()["preprocess"]["outs"]
    assert (processed["path"], processed["md5"]) == ("data/processed", tags["dvc.data"])
    given = yaml.safe_load((project.root / "params.yaml").read_text())
    for name, value in run.data.params.items():
        place = given
        for key in name.split("."):
            place = place[key]
        assert place == yaml.safe_load(value), name
    before = {name: project.json(f"metrics/{name}.json") for name in ("train", "test")}
    assert {f"test_{name}": value for name, value in before["test"].items()}.items() <= run.data.metrics.items()
    assert before["train"]["val_accuracy"] == run.data.metrics["best_val_accuracy"]
    assert_same_weights(client, run, project.root / "models/model.pt")

    # The same number of threads: with others sums are rounded otherwise.
    made = project.output_hashes("train", "evaluate")
    command = ["env", f"OMP_NUM_THREADS={tags['threads']}", "dvc", "repro", "--force", "--single-item"]
    project.run(*command, "train", "evaluate")
    again, *_ = runs(client, order_by=["attributes.start_time DESC"])
    assert again.info.run_id == project.json("metrics/run.json")["mlflow"]["run_id"] != run.info.run_id
    assert project.output_hashes("train", "evaluate") == made
    assert len(made) == 11


def assert_same_weights(client: MlflowClient, run: Run, file: Path) -> None:
    """The logged model of a run is the one in the checkout's file."""
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    folder = Path(client.get_logged_model(output.model_id).artifact_location.removeprefix("file://"))
    logged = torch.export.load(folder / "artifacts/network/data/model.pt2").state_dict
    here = torch.load(file, weights_only=True)
    assert len(here) > 0
    assert {name.partition(".")[2] for name in logged} == here.keys()
    assert all(torch.equal(value, here[name.partition(".")[2]]) for name, value in logged.items())
