"""tools/queue_status.py: the experiments of DVC's queue, one of which loses its worker."""

import json
import time
from pathlib import Path

import psutil
import pytest

from project import Project, clone
from queue_checks import find_leftovers, iter_workers, list_commits, queue_experiments, run_queue

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EPOCHS = 400
"""More than the training can reach before it is killed."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = clone(tmp_path_factory.mktemp("queue_status"))
    made.set(train={"checkpoint_seconds": 0.1})
    made.run("dvc", "repro", "preprocess")
    made.commit("the data")
    return made


def status(project: Project, *options: str) -> list[str]:
    return project.run("python", "tools/queue_status.py", *options).splitlines()


def states(lines: list[str]) -> dict[str, str]:
    """The state of each experiment in the table, whose columns are divided by two spaces or more."""
    start = next(number for number, line in enumerate(lines) if line.startswith("experiment "))
    rows = [line.split("  ") for line in lines[start + 1 :] if "  " in line]
    return {row[0].strip(): next(cell.strip() for cell in row[1:] if cell) for row in rows}


def wait_for_epoch(project: Project, name: str) -> int:
    """Wait until the table shows an epoch of a running experiment; return it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        row = next(line for line in status(project) if line.startswith(f"{name} ")).split()
        if row[1:2] == ["running"] and row[2] != "-":
            assert row[3:5] == ["of", str(EPOCHS)]
            return int(row[2])
        time.sleep(0.5)
    raise AssertionError("the training has not logged an epoch")


def stop_workers(project: Project) -> None:
    """End the experiment that runs, and wait until its worker has ended."""
    project.run("dvc", "queue", "stop", "--kill")
    psutil.wait_procs(list(iter_workers(project)), timeout=60)


def kill_all(project: Project) -> None:
    """Kill the workers and what they have started, as when the machine is switched off."""
    for worker in iter_workers(project):
        processes = [worker, *worker.children(recursive=True)]  # a worker that sees its child end records a failure
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)


def test_an_experiment_without_a_worker_is_put_back_and_resumes(project: Project) -> None:
    assert status(project) == ["The queue is empty. `dvc exp run --queue -S train.lr=0.05` adds an experiment."]
    (name,) = queue_experiments(project, f"train.epochs={EPOCHS}")
    lines = status(project)
    assert states(lines) == {name: "waiting"}
    assert "no worker is running; `dvc queue start`" in lines[-1]

    project.run("sh", "-c", "dvc queue start >/dev/null 2>&1")
    epoch = wait_for_epoch(project, name)
    kill_all(project)
    lines = status(project)
    assert states(lines) == {name: "worker gone"}
    assert "--requeue` puts experiments without a worker back" in lines[-1]
    assert "Running" in project.run("dvc", "queue", "status")  # what DVC says of it

    lines = status(project, "--requeue")
    assert lines[0] == f"put back: {name}"
    assert states(lines) == {name: "waiting"}
    assert find_leftovers(project) == []
    assert "Queued" in project.run("dvc", "queue", "status")
    project.run("sh", "-c", "dvc queue start >/dev/null 2>&1")
    assert wait_for_epoch(project, name) >= epoch
    deadline = time.monotonic() + 120
    while "train: resumes from" not in (log := project.run("dvc", "queue", "logs", name)):
        assert time.monotonic() < deadline, log
        time.sleep(0.5)
    stop_workers(project)


@pytest.mark.soak
def test_an_experiment_that_goes_on_without_its_worker_is_ended_first(project: Project) -> None:
    """Its result would not be collected, because its worker does that."""
    (name,) = queue_experiments(project, f"train.epochs={EPOCHS}", "seed=1")
    project.run("sh", "-c", "dvc queue start >/dev/null 2>&1")
    wait_for_epoch(project, name)
    (worker,) = list(iter_workers(project))
    children = worker.children(recursive=True)
    worker.kill()
    worker.wait()
    assert states(status(project))[name] == "worker gone"
    status(project, "--requeue")
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert states(status(project))[name] == "waiting"
    project.run("dvc", "queue", "remove", name)


def test_finished_and_failed_experiments(project: Project) -> None:
    (good,) = queue_experiments(project, "train.epochs=1")
    (bad,) = queue_experiments(project, "train.epochs=1", "model.name=resnet999")
    run_queue(project)
    lines = status(project)
    found = states(lines)
    assert (found[good], found[bad]) == ("finished", "failed")
    row = next(line for line in lines if line.startswith(f"{good} ")).split()
    assert row[2:5] == ["1", "of", "1"]
    metrics = json.loads(project.run("git", "show", f"{list_commits(project)[good]}:metrics/test.json"))
    assert row[6] == f"{metrics['accuracy']:.2%}"
    assert "`dvc queue logs NAME` shows why an experiment failed" in lines
    assert good in list_commits(project)


def test_a_store_that_cannot_be_used_is_one_line(project: Project, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database")
    output = project.run(
        "env", f"MLFLOW_TRACKING_URI=sqlite:///{tmp_path}/mlflow.db", "python", "tools/queue_status.py", status=1
    )
    assert output.startswith("queue_status: MLflow cannot use")
    assert len(output.splitlines()) == 1
