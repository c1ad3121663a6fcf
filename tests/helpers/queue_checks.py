"""Experiments through DVC's queue, two at a time, and what has to be true of each in DVC, MLflow and the registry."""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from project import Project

WORKERS = 2
METRICS = {"train/loss", "train_seconds", "val/accuracy", "best_val_accuracy", "test_accuracy", "test_f1_macro"}
ARTIFACTS = {
    "report/index.html",
    "report/model_card.md",
    "figures/samples.png",
    "figures/confusion_matrix.png",
    "metrics/history.csv",
    "metrics/per_class.csv",
}
FOLDER = "artifacts/network/data"
"""Of the weights, in a logged model."""
TAGS = {"dvc.apply", "dvc.baseline_rev", "dvc.data", "dvc.experiment", "ended", "mlflow.note.content"}
ERRORS = ("database is locked", "unable to acquire lock", "traceback (most recent call last)")


@dataclass(frozen=True)
class Count:
    """How many of something there are, and how many are expected."""

    name: str
    found: int
    expected: int


def queue_experiments(project: Project, *settings: str) -> list[str]:
    """Queue an experiment for each combination of the settings' values (`seed=range(2)`); return their names."""
    words = [word for setting in settings for word in ("-S", setting)]
    output = project.run("dvc", "exp", "run", "--queue", *words)
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Queued experiment ")]


def run_queue(project: Project, tracking_uri: str | None = None) -> float:
    """Start the queue's workers and wait until they stop; return the CPU seconds that they and their children took.

    The experiments divide the cores by themselves, so OMP_NUM_THREADS is not set.
    """
    environment = {name: value for name, value in project.environment().items() if name != "OMP_NUM_THREADS"}
    if tracking_uri:
        environment["MLFLOW_TRACKING_URI"] = tracking_uri
    # The workers inherit the output of this command, so that reading a pipe to its end would wait for them as well.
    command = ["dvc", "queue", "start", f"--jobs={WORKERS}"]
    subprocess.run(command, cwd=project.root, env=environment, stdout=subprocess.DEVNULL, check=True)
    seconds: dict[int, float] = {}
    try:
        while workers := list(iter_workers(project)):
            for process in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    seconds[process.pid] = sum(process.cpu_times()[:4])  # with those of its finished children
            time.sleep(1)
    except KeyboardInterrupt:
        project.run("dvc", "queue", "stop", "--kill")
        raise
    return sum(seconds.values())


def iter_workers(project: Project) -> Iterator[psutil.Process]:
    """The processes of the queue's workers of this project."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command, folder = process.info["cmdline"], process.info["cwd"]
        if command and folder and "queue-worker" in command and Path(folder).is_relative_to(project.root):
            yield process


def list_commits(project: Project) -> dict[str, str]:
    """The commit of each experiment that DVC has recorded, by the experiment's name."""
    lines = project.run("git", "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    commits = {}
    for name, commit in map(str.split, lines):
        _, _, group, *rest = name.split("/")  # refs/exps/4e/5218c.../wide; refs of the queue have a word for `4e`
        if len(group) == 2:
            commits[rest[-1]] = commit
    return commits


def count_results(project: Project, names: Sequence[str], tracking_uri: str | None = None) -> list[Count]:
    """Count the results of the experiments of these names, which are all that the MLflow store contains."""
    client = MlflowClient(tracking_uri or f"sqlite:///{project.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cifar10")
    runs = list(client.search_runs([experiment.experiment_id], max_results=10_000)) if experiment else []
    versions = list(client.search_model_versions("name = 'cifar10'", max_results=10_000))
    scores = {str(version.version): float(version.tags["val_accuracy"]) for version in versions}
    aliases = client.get_registered_model("cifar10").aliases if versions else {}
    newest = max(scores, key=int, default=None)
    champion = str(aliases.get("champion"))
    # Accuracies on different validation images are not compared, and each seed has its own split.
    splits = {str(version.version): version.tags["split_digest"] for version in versions}
    rivals = [score for number, score in scores.items() if splits[number] == splits.get(champion)]
    per_experiment = {
        "Success in DVC's queue": project.run("dvc", "queue", "status").count("Success"),
        "commits of DVC": len(list_commits(project).keys() & set(names)),
        "MLflow runs": len(runs),
        "names of experiments among the runs": len({run.info.run_name for run in runs} & set(names)),
        "different parameters among the runs": len({json.dumps(run.data.params, sort_keys=True) for run in runs}),
        **{name: sum(check(project, client, run) for run in runs) for name, check in CHECKS.items()},
        "model versions": len(versions),
        "runs with a model version": len({version.run_id for version in versions} & {run.info.run_id for run in runs}),
    }
    return [
        *(Count(name, found, len(names)) for name, found in per_experiment.items()),
        Count("champion is the best on its validation split", int(scores.get(champion) == max(rivals, default=0)), 1),
        Count("challenger is the newest version", int(str(aliases.get("challenger")) == newest), 1),
        Count("leftover copies and stores", len(find_leftovers(project)), 0),
        Count("errors in `dvc queue logs`", len(find_errors(project)), 0),
    ]


def find_wrong(counts: Sequence[Count]) -> list[str]:
    """The counts that are not as expected, one line each."""
    return [
        f"{count.name}: {count.found}, expected {count.expected}" for count in counts if count.found != count.expected
    ]


def is_finished(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether the run's status and tag say that it finished."""
    return (run.info.status, run.data.tags.get("ended")) == ("FINISHED", "finished")


def has_metrics(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether it has metrics of all three splits, and one validation loss per epoch."""
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val/loss")]
    return run.data.metrics.keys() >= METRICS and steps == list(range(1, int(run.data.params["train.epochs"]) + 1))


def agrees_with_dvc(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether the experiment of its name, as DVC committed it, has its id and its test accuracy."""
    commit = list_commits(project).get(run.info.run_name)
    if commit is None:
        return False
    test, record = (json.loads(project.run("git", "show", f"{commit}:metrics/{name}.json")) for name in ("test", "run"))
    found = run.info.run_id, run.data.metrics.get("test_accuracy")
    return found == (record["mlflow"]["run_id"], test["accuracy"])


def has_artifacts(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether it has the report, the figures and the tables."""
    folders = ("report", "figures", "metrics")
    return {file.path for folder in folders for file in client.list_artifacts(run.info.run_id, folder)} >= ARTIFACTS


def has_model(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether it has one logged model, which is ready and has a file of weights."""
    models = [client.get_logged_model(output.model_id) for output in (run.outputs.model_outputs if run.outputs else [])]
    files = [file.path for model in models for file in client.list_logged_model_artifacts(model.model_id, FOLDER)]
    return [str(model.status) for model in models] == ["READY"] and files == [f"{FOLDER}/model.pt2"]


def has_tags(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether its tags name its origin and the command that applies the experiment."""
    tags, name = run.data.tags, run.info.run_name
    return tags.keys() >= TAGS and (tags["dvc.experiment"], tags["dvc.apply"]) == (name, f"dvc exp apply {name}")


CHECKS: dict[str, Callable[[Project, MlflowClient, Run], bool]] = {
    "finished runs": is_finished,
    "runs with metrics of train, val and test": has_metrics,
    "runs with the same scores in DVC and MLflow": agrees_with_dvc,
    "runs with report, figures and tables": has_artifacts,
    "runs with a logged model": has_model,
    "runs with tags": has_tags,
}
"""What has to be true of each run."""


def find_leftovers(project: Project) -> list[Path]:
    """Files and directories that a finished experiment should not leave."""
    experiments = project.root / ".dvc/tmp/exps"
    stores = [path for name in ("mlflow.db", "mlruns") for path in experiments.rglob(name)]
    return [*stores, *experiments.glob("tmp*"), *experiments.glob("standalone/tmp*"), *project.root.rglob("*.partial")]


def find_errors(project: Project) -> list[str]:
    """The lines of the output of workers and experiments (`dvc queue logs`) that report an error."""
    errors = []
    for file in (project.root / ".dvc/tmp/exps").rglob("*.out"):
        lines = file.read_text(errors="replace").splitlines()
        errors += [f"{file.name}: {line}" for line in lines if any(word in line.lower() for word in ERRORS)]
    return errors
