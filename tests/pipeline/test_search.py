"""A search with the real Optuna, DVC and MLflow: killed, resumed, with pruned trials, and what it refuses."""

import json
import os
import re
import signal
import time
from pathlib import Path

import optuna
import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from project import Project, clone

pytestmark = pytest.mark.slow

SEARCH: dict[str, object] = {
    "study": "rates",
    "trials": 3,
    "jobs": 2,
    "sampler": "random",
    "pruner": "halving",
    "space": [
        {"parameter": "train.lr", "choices": [1e-6, 0.1]},  # the first learns nothing, the second learns
        {"parameter": "train.optimizer.adamw_lr", "low": 0.01, "high": 0.02, "log": True},
        {"parameter": "train.augment.crop_padding", "low": 0, "high": 2},
    ],
}


def trials(project: Project) -> list[FrozenTrial]:
    return optuna.load_study(study_name="rates", storage=f"sqlite:///{project.root / 'optuna.db'}").trials


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A search that was killed after its second trial had started and the first had trained an epoch."""
    project = clone(tmp_path_factory.mktemp("search"))
    project.set(search=SEARCH)
    project.commit("what to search")
    project.run("dvc", "repro", "preprocess")
    search = project.start("python", "tools/search.py")
    deadline = time.monotonic() + 200
    second = project.root / ".dvc/tmp/search/rates-1.log"
    while not (second.exists() and any(trial.intermediate_values for trial in trials(project))):
        assert search.poll() is None, search.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    search.send_signal(signal.SIGKILL)
    search.wait()
    return project


@pytest.fixture(scope="module")
def searched(killed: Project) -> Project:
    """The same search, resumed with one trial at a time and finished."""
    killed.set(search={"jobs": 1})
    output = killed.run("python", "tools/search.py", timeout=800)
    (killed.root / "printed").write_text(output)
    return killed


@pytest.fixture(scope="module")
def runs(searched: Project) -> dict[str, Run]:
    """The finished MLflow runs, by name."""
    client = MlflowClient(f"sqlite:///{searched.root / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("cifar10").experiment_id])  # type: ignore[union-attr]
    return {run.info.run_name: run for run in found if run.info.status == "FINISHED"}


@pytest.mark.timeout(1200)
def test_a_resumed_search_repeats_interrupted_trials_first(searched: Project) -> None:
    all_trials = trials(searched)
    finished = [trial for trial in all_trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == 3
    interrupted = [trial.params for trial in all_trials if trial.state == TrialState.FAIL]
    assert len(interrupted) == 2
    assert [trial.params for trial in finished[:2]] == interrupted


def test_each_trial_is_an_experiment_and_a_complete_child_run_of_the_search(
    searched: Project, runs: dict[str, Run]
) -> None:
    experiments = searched.run("dvc", "exp", "list", "--name-only").split()
    parent = runs["rates"]
    for trial in trials(searched)[2:]:
        name = f"rates-{trial.number}"
        assert name in experiments
        run = runs[name]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["search.trial"] == str(trial.number)
        assert run.data.tags["dvc.apply"] == f"dvc exp apply {name}"
        assert {"test_accuracy", "best_val_accuracy"} <= run.data.metrics.keys()
        assert trial.user_attrs["val_accuracy"] == run.data.metrics["best_val_accuracy"]
        assert {key: json.loads(run.data.params[key]) for key in trial.params} == trial.params


def test_bad_trials_are_pruned(searched: Project, runs: dict[str, Run]) -> None:
    finished = trials(searched)[2:]
    assert {trial.params["train.lr"] for trial in finished if trial.state == TrialState.COMPLETE} == {0.1}
    assert 1e-6 in {trial.params["train.lr"] for trial in finished if trial.state == TrialState.PRUNED}
    for trial in finished:
        pruned = trial.state == TrialState.PRUNED
        assert max(trial.intermediate_values) == (1 if pruned else 3)
        assert runs[f"rates-{trial.number}"].data.tags["ended"] == ("pruned" if pruned else "finished")


def test_the_search_names_the_best_trial(searched: Project, runs: dict[str, Run]) -> None:
    best = max((one for one in trials(searched) if one.state == TrialState.COMPLETE), key=lambda one: one.value or 0)
    printed = (searched.root / "printed").read_text()
    assert "Warning" not in printed
    last = printed.splitlines()[-2]
    assert f"rates-{best.number}, validation accuracy {best.value:.2%}" in last
    assert f"`dvc exp apply rates-{best.number}`" in last
    parent = runs["rates"].data
    assert parent.tags["mlflow.note.content"].splitlines()[2].startswith(f"| rates-{best.number} | {best.value:.2%} |")
    assert parent.tags["ended"] == "finished"
    assert parent.metrics["search/best_val_accuracy"] == best.value


def test_a_finished_search_runs_no_more_trials(searched: Project) -> None:
    output = searched.run("python", "tools/search.py")
    assert "the best of 3 trials" in output
    assert len(trials(searched)) == 5


def test_other_parameters_need_another_study(searched: Project) -> None:
    searched.set(train={"epochs": 2})
    output = searched.run("python", "tools/search.py", status=1)
    assert "search.study: rates has trials with other parameters (train.epochs)" in output
    searched.set(train={"epochs": 3})


def test_names_of_existing_experiments_are_refused(searched: Project) -> None:
    (searched.root / "optuna.db").rename(searched.root / "old.db")
    output = searched.run("python", "tools/search.py", status=1)
    (searched.root / "old.db").rename(searched.root / "optuna.db")
    assert "search.study: experiments named like trials of rates exist already" in output
    assert "run `dvc exp remove rates-" in output
    assert "Traceback" not in output


def test_two_searches_at_once_are_refused(searched: Project) -> None:
    with FileLock(searched.root / ".dvc/tmp/search.lock"):
        output = searched.run("python", "tools/search.py", status=1)
    assert output == "search: another process runs tools/search.py in this checkout; wait until it ends\n"


def test_ctrl_c_stops_the_trials_too(searched: Project) -> None:
    searched.set(search={"trials": 4})
    search = searched.start("python", "tools/search.py")
    log = searched.root / ".dvc/tmp/search/rates-5.log"
    deadline = time.monotonic() + 100
    while not (log.exists() and "stages/train.py" in log.read_text()):
        assert search.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(search.pid, signal.SIGINT)
    output, _ = search.communicate(timeout=60)
    assert search.returncode == 130, output
    assert re.search(r"search: the best of 3 trials is rates-\d,.*; `dvc exp apply rates-\d`", output)
    assert "search: interrupted" in output
    assert "Traceback" not in output
    assert not any(runs_in(searched.root, Path("/proc") / pid) for pid in os.listdir("/proc") if pid.isdigit())


def runs_in(folder: Path, process: Path) -> bool:
    try:
        return (process / "cwd").resolve().is_relative_to(folder)
    except OSError:
        return False
