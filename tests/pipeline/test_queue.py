"""Experiments that two workers of DVC's queue run at once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from project import Project, clone


def wait_for_the_queue(project: Project) -> str:
    """What `dvc queue status` says when nothing is left to do."""
    deadline = time.monotonic() + 500
    while True:
        status = project.run("dvc", "queue", "status")
        if "Queued" not in status and "Running" not in status:
            return status
        assert time.monotonic() < deadline, status
        time.sleep(2)


@pytest.mark.timeout(600)
def test_each_is_a_whole_run_in_the_main_checkout_and_has_its_share_of_the_cores(tmp_path: Path) -> None:
    project = clone(tmp_path)
    program = "import torch; print(torch.get_num_threads())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    alone = int(subprocess.check_output([sys.executable, "-c", program], env=environment))
    # What the tests set for themselves would be left as it is.
    project.run(
        "env", "-u", "OMP_NUM_THREADS", "dvc", "exp", "run", "--queue", "-S", "seed=range(3)", "-S", "train.epochs=1"
    )
    project.run("env", "-u", "OMP_NUM_THREADS", "dvc", "queue", "start", "-j", "2")
    status = wait_for_the_queue(project)
    assert status.count("Success") == 3, status

    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("cifar10").experiment_id])  # type: ignore[union-attr]
    assert sorted(run.data.params["seed"] for run in runs) == list("012")
    for run in runs:
        assert (run.info.status, run.data.tags["ended"]) == ("FINISHED", "finished")
        assert {"test/accuracy", "val/accuracy"} <= run.data.metrics.keys()
        assert {file.path for file in client.list_artifacts(run.info.run_id, "report")} == {"report/index.html"}
        assert run.data.tags["dvc.apply"] == f"dvc exp apply {run.info.run_name}"
    # Two began together; the last may have been alone.
    first = sorted(runs, key=lambda run: run.info.start_time)[:2]
    assert [int(run.data.tags["threads"]) for run in first] == [max(1, alone // 2)] * 2
    versions = client.search_model_versions("name = 'cifar10'")
    best = max(float(version.tags["val_accuracy"]) for version in versions)
    assert len(versions) == 3
    assert float(client.get_model_version_by_alias("cifar10", "champion").tags["val_accuracy"]) == best
