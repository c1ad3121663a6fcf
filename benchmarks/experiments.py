"""Many experiments through DVC's queue, two at a time, and a count of what became of them; any that is lost fails it.

    python benchmarks/experiments.py                     # fifty: five learning rates, ten seeds
    python benchmarks/experiments.py -S 'seed=range(4)'  # what `dvc exp run` is to change, a range for each parameter

They run in a temporary clone of this checkout on a small data set with a small network, as the tests do: what is put to
the test is DVC, MLflow and the way between them, not the training. Each experiment has to be whole in both: scores,
curve, figures, report, model and tags, and one version in the registry.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in ("stages", "tests/helpers", "tools"))

import psutil
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Run

from project import Project, clone
from vision.pipeline.progress import bar

FIFTY = ("train.lr=0.05,0.1,0.15,0.2,0.25", "seed=range(10)")
WORKERS = 2
METRICS = {"train/loss", "train/total_seconds", "val/accuracy", "val/best_accuracy", "test/accuracy", "test/f1_macro"}
ARTIFACTS = {
    "report/index.html",
    "figures/samples.png",
    "figures/confusion_matrix.png",
    "metrics/history.csv",
    "metrics/per_class.csv",
}
TAGS = {"dvc.apply", "dvc.baseline_rev", "dvc.data", "dvc.experiment", "ended", "mlflow.note.content"}
TROUBLE = ("database is locked", "unable to acquire lock", "traceback (most recent call last)")


@dataclass(frozen=True)
class Count:
    """How many there are of something, and how many there should be."""

    what: str
    found: int
    wanted: int

    def __str__(self) -> str:
        """A row of the table."""
        return f"| {self.what} | {self.found} | {self.wanted} |" + ("" if self.found == self.wanted else " <-- wrong")


def queue(project: Project, *settings: str) -> list[str]:
    """Queue an experiment for each combination of the settings' values; their names."""
    output = project.run("dvc", "exp", "run", "--queue", *(word for setting in settings for word in ("-S", setting)))
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Queued experiment ")]


def run_all(project: Project, names: Sequence[str], tracking_uri: str | None = None) -> float:
    """Start the workers and show a bar until nothing is left and they stop; the CPU seconds that they took."""
    environment = project.environment() | ({"MLFLOW_TRACKING_URI": tracking_uri} if tracking_uri else {})
    # They hold the output of the command that starts them: whoever reads a pipe to its end waits for them as well.
    start = ["dvc", "queue", "start", f"--jobs={WORKERS}"]
    subprocess.run(start, cwd=project.root, env=environment, stdout=subprocess.DEVNULL, check=True)
    spent: dict[int, float] = {}
    form = "{desc}: {n:.0f} of {total:.0f} |{bar}| {elapsed}<{remaining}"
    try:
        with bar(len(names), "", "queue", bar_format=form, smoothing=0, miniters=0) as progress_bar:
            while workers := list(workers_of(project)):
                for process in workers:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        spent[process.pid] = sum(process.cpu_times()[:4])  # its children's that ended are among them
                progress_bar.update(len(committed(project)) - progress_bar.n)
                time.sleep(1)
            progress_bar.update(len(committed(project)) - progress_bar.n)
    except KeyboardInterrupt:
        project.run("dvc", "queue", "stop", "--kill")
        while list(workers_of(project)):
            time.sleep(1)
        sys.exit("experiments.py: interrupted")
    return sum(spent.values())


def workers_of(project: Project) -> Iterator[psutil.Process]:
    """The queue's processes that work for this project."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command, folder = process.info["cmdline"], process.info["cwd"]
        if command and folder and "queue-worker" in command and Path(folder).is_relative_to(project.root):
            yield process


def committed(project: Project) -> dict[str, str]:
    """The commit of each experiment that DVC keeps, by its name."""
    lines = project.run("git", "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    found = {}
    for name, commit in map(str.split, lines):
        _, _, group, *rest = name.split("/")  # refs/exps/4e/5218c.../wide; those of the queue have a word there
        if len(group) == 2:
            found[rest[-1]] = commit
    return found


def counts(project: Project, names: Sequence[str], tracking_uri: str | None = None) -> list[Count]:
    """What became of the experiments of these names, which are all that the store has."""
    client = MlflowClient(tracking_uri or f"sqlite:///{project.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cifar10")
    runs = list(client.search_runs([experiment.experiment_id], max_results=10_000)) if experiment else []
    versions = list(client.search_model_versions("name = 'cifar10'", max_results=10_000))
    scores = {str(version.version): float(version.tags["val_accuracy"]) for version in versions}
    aliases = client.get_registered_model("cifar10").aliases if versions else {}
    best, newest = max(scores.values(), default=0), max(scores, key=int, default=None)
    of_each = {
        "Success in DVC's queue": project.run("dvc", "queue", "status").count("Success"),
        "commits of DVC": len(committed(project).keys() & set(names)),
        "MLflow runs": len(runs),
        "named like an experiment each": len({run.info.run_name for run in runs} & set(names)),
        "of parameters of their own": len({json.dumps(run.data.params, sort_keys=True) for run in runs}),
        **{what: sum(check(project, client, run) for run in runs) for what, check in CHECKS.items()},
        "model versions": len(versions),
        "of a run each": len({version.run_id for version in versions} & {run.info.run_id for run in runs}),
    }
    return [
        *(Count(what, found, len(names)) for what, found in of_each.items()),
        Count("champion, than which none validates better", int(scores.get(str(aliases.get("champion"))) == best), 1),
        Count("challenger, than which none is newer", int(str(aliases.get("challenger")) == newest), 1),
        Count("copies and stores that experiments left behind", len(leftovers(project)), 0),
        Count("lines of trouble in `dvc queue logs`", len(trouble(project)), 0),
    ]


def finished(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether the run says that it ended well."""
    return (run.info.status, run.data.tags.get("ended")) == ("FINISHED", "finished")


def has_metrics(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether it has figures of all three splits, and the validation loss once an epoch."""
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val/loss")]
    return run.data.metrics.keys() >= METRICS and steps == list(range(1, int(run.data.params["train.epochs"]) + 1))


def agrees_with_dvc(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether the experiment of its name, as DVC committed it, has its id and its test accuracy."""
    commit = committed(project).get(run.info.run_name)
    if commit is None:
        return False
    test, record = (json.loads(project.run("git", "show", f"{commit}:metrics/{name}.json")) for name in ("test", "run"))
    found = run.info.run_id, run.data.metrics.get("test/accuracy")
    return found == (record["mlflow"]["run_id"], test["accuracy"])


def has_artifacts(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether it has the report, the figures and the tables."""
    folders = ("report", "figures", "metrics")
    return {file.path for folder in folders for file in client.list_artifacts(run.info.run_id, folder)} >= ARTIFACTS


def has_model(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether it has a logged model, ready and with a file of weights."""
    models = [client.get_logged_model(output.model_id) for output in (run.outputs.model_outputs if run.outputs else [])]
    files = [file.path for model in models for file in client.list_logged_model_artifacts(model.model_id, "data")]
    return [str(model.status) for model in models] == ["READY"] and files == ["data/model.pt2"]


def has_tags(project: Project, client: MlflowClient, run: Run) -> bool:
    """Whether its tags say where it comes from, and which command brings it back."""
    tags, name = run.data.tags, run.info.run_name
    return tags.keys() >= TAGS and (tags["dvc.experiment"], tags["dvc.apply"]) == (name, f"dvc exp apply {name}")


CHECKS: dict[str, Callable[[Project, MlflowClient, Run], bool]] = {
    "FINISHED": finished,
    "metrics of train, val and test": has_metrics,
    "the same scores in DVC and MLflow": agrees_with_dvc,
    "report, figures and tables": has_artifacts,
    "a logged model": has_model,
    "tags, what brings it back among them": has_tags,
}
"""What a run has to be."""


def leftovers(project: Project) -> list[Path]:
    """What an experiment that ended should not leave."""
    experiments = project.root / ".dvc/tmp/exps"
    stores = [path for name in ("mlflow.db", "mlruns") for path in experiments.rglob(name)]
    return [*stores, *experiments.glob("tmp*"), *experiments.glob("standalone/tmp*"), *project.root.rglob("*.partial")]


def trouble(project: Project) -> list[str]:
    """The lines of all that the workers and the experiments printed (`dvc queue logs`) that tell of a failure."""
    found = []
    for file in (project.root / ".dvc/tmp/exps").rglob("*.out"):
        lines = file.read_text(errors="replace").splitlines()
        found += [f"{file.name}: {line}" for line in lines if any(word in line.lower() for word in TROUBLE)]
    return found


def prepared(folder: Path) -> Project:
    """A small clone whose data is ready, and committed."""
    project = clone(folder)
    project.run("dvc", "repro", "preprocess")
    project.commit("the data")
    return project


def measure(folder: Path, settings: Sequence[str], tracking_uri: str | None) -> None:
    """Run the experiments in a new clone and print the table."""
    project = prepared(folder)
    names = queue(project, *settings)
    started = time.perf_counter()
    cpu = run_all(project, names, tracking_uri)
    seconds = time.perf_counter() - started
    found = counts(project, names, tracking_uri)
    print(f"| of {len(names)} experiments, {WORKERS} at a time | found | wanted |\n|---|---|---|")
    print(*found, *trouble(project), sep="\n")
    each = f"{seconds / len(names):.1f} s and {cpu / len(names):.1f} CPU seconds each"
    print(f"{seconds:.0f} s in all, {cpu:.0f} CPU seconds; {each}")
    if any(count.found != count.wanted for count in found):
        sys.exit("experiments.py: not all is as it should be")


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-S", "--set-param", action="append", metavar="NAME=VALUES", help=f"instead of {FIFTY}")
    parser.add_argument("--tracking-uri", help="an empty MLflow server; without it, an SQLite file in the clone")
    parser.add_argument("--folder", type=Path, help="a new folder for the clone, which is kept; else a temporary one")
    options = parser.parse_args()
    if options.folder and (options.folder / "project").exists():
        sys.exit(f"experiments.py: --folder: {options.folder} has a clone already")
    try:
        if options.tracking_uri and MlflowClient(options.tracking_uri).get_experiment_by_name("cifar10"):
            sys.exit(f"experiments.py: --tracking-uri: {options.tracking_uri} has runs already, which would be counted")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            measure(options.folder or Path(temporary), options.set_param or FIFTY, options.tracking_uri)
    except (MlflowException, AssertionError) as error:  # a command that failed says what it printed
        sys.exit(f"experiments.py: {error}")


if __name__ == "__main__":
    main()
