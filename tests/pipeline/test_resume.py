"""A training that is killed without warning, again and again, and the same `dvc repro` that goes on."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from subprocess import Popen

import psutil
import pytest
from mlflow import MlflowClient

from project import Project, clone

pytestmark = pytest.mark.slow

EPOCHS = 24


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone whose next stage is the training."""
    made = clone(tmp_path_factory.mktemp("resume"))
    made.set(train={"epochs": EPOCHS, "checkpoint_seconds": 0.01})
    made.commit("many epochs")
    made.run("dvc", "repro", "preprocess")
    return made


def copied(project: Project, name: str) -> Project:
    shutil.copytree(project.root, project.root.parent / name, symlinks=True)
    # One thread: two would wait for one another where others compute too.
    return Project(project.root.parent / name, project.home, {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def uninterrupted(prepared: Project) -> Project:
    project = copied(prepared, "uninterrupted")
    project.run("dvc", "repro", "evaluate")
    return project


@pytest.fixture
def killed(prepared: Project) -> Project:
    return copied(prepared, "killed")


def kill_all(process: "Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGKILL)


def kill_the_training(process: "Popen[str]") -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        if "stages/train.py" in child.cmdline():
            child.kill()


def interrupted(project: Project, epoch: int, kill: Callable[["Popen[str]"], None]) -> str:
    """What was printed until, after so many epochs, it was killed."""
    process = project.start("dvc", "repro", "train")
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if f"epoch {epoch:3d}:" in line:
            kill(process)
            break
    printed += process.stdout.readlines()
    assert process.wait(timeout=60) != 0
    return "".join(printed)


@pytest.mark.timeout(600)
def test_it_goes_on_and_ends_as_if_nothing_had_been(uninterrupted: Project, killed: Project) -> None:
    assert "resumes from" not in interrupted(killed, 5, kill_all)
    assert "train: resumes from" in interrupted(killed, 10, kill_the_training)
    files = sorted(killed.root.glob("checkpoints/*/*.pt"))
    files[-1].write_bytes(files[-1].read_bytes()[:-10])
    printed = interrupted(killed, 15, kill_all)
    assert f"train: {files[-1]}: damaged" in printed
    assert "train: resumes from" in printed
    printed = killed.run("dvc", "repro", "evaluate")
    assert "train: resumes from" in printed
    assert "Traceback" not in printed
    epochs = re.findall(r"^epoch .*/s( \(trained earlier\))?$", printed, re.M)
    assert len(epochs) == EPOCHS
    # How far behind the last kill that is depends on how long this disk took for the saves before.
    (step, epoch) = re.findall(r"resumes from (step \d+ of|the end of) epoch (\d+)", printed)[0]
    assert 0 < sum(map(bool, epochs)) == int(epoch) - step.startswith("step") < EPOCHS
    assert epochs == sorted(epochs, reverse=True), "those that were trained earlier come first, and are marked"

    made = uninterrupted.output_hashes("train", "evaluate")
    assert killed.output_hashes("train", "evaluate") == made
    assert len(made) == 11
    client = MlflowClient(f"sqlite:///{killed.root / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("cifar10").experiment_id])  # type: ignore[union-attr]
    assert run.info.run_id == killed.json("metrics/run.json")["mlflow"]["run_id"]
    assert (run.info.status, run.data.tags["ended"]) == ("FINISHED", "finished")
    for metric in ("train/loss", "val/accuracy"):
        steps = [entry.step for entry in client.get_metric_history(run.info.run_id, metric)]
        assert steps == list(range(1, EPOCHS + 1))
    for project in (killed, uninterrupted):
        assert list((project.root / "checkpoints").iterdir()) == []
        assert project.run("git", "status", "--porcelain", "--untracked-files=all", "checkpoints") == ""
