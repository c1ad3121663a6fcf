"""Show the experiments in DVC's queue, with their epoch and accuracy from MLflow.

    python tools/queue_status.py
    python tools/queue_status.py --requeue

An experiment whose worker was killed, or whose machine was switched off, is
`running` in DVC's own list for ever. Here it is `worker gone`. --requeue puts
such experiments back into the queue. They resume from their last checkpoint.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

# isort: split
import argparse
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
from celery.result import AsyncResult
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.queue.base import QueueEntry
from dvc.repo.experiments.queue.celery import LocalCeleryQueue
from dvc.repo.experiments.queue.tasks import run_exp
from dvc.repo.experiments.utils import get_exp_rwlock

from vision.pipeline.errors import UserError
from vision.pipeline.paths import ROOT
from vision.tracking import store

MAX_RUNS = 1000
"""Newest runs of experiments among which those of the queue are looked for."""
WAITING, RUNNING, GONE, FAILED, FINISHED = "waiting", "running", "worker gone", "failed", "finished"


@dataclass(frozen=True)
class Experiment:
    """An experiment in the queue.

    Attributes:
        entry: what DVC knows about it.
        state: one of the states above.
        delivery_tag: of the message with the task that a worker has taken; empty if it waits.
    """

    entry: QueueEntry
    state: str
    delivery_tag: str = ""

    @property
    def name(self) -> str:
        """The name of the experiment, or the short hash of its commit."""
        return self.entry.name or self.entry.stash_rev[:7]


@dataclass(frozen=True)
class Progress:
    """The metrics of an experiment's MLflow run; None if it has not logged them."""

    epoch: int | None = None
    epochs: int | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None


def main() -> None:
    """Print the table; with --requeue, put experiments without a worker back into the queue first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requeue", action="store_true", help="put experiments without a worker back into the queue")
    options = parser.parse_args()
    try:
        with Repo(str(ROOT)) as repo:
            queue = repo.experiments.celery_queue
            experiments = list_experiments(queue)
            if options.requeue:
                gone = [experiment for experiment in experiments if experiment.state == GONE]
                for experiment in gone:
                    requeue(queue, experiment)
                    print(f"put back: {experiment.name}")
                experiments = list_experiments(queue) if gone else experiments
            workers = len(find_workers())
    except DvcException as error:
        raise UserError(str(error)) from None
    if not experiments:
        print("The queue is empty. `dvc exp run --queue -S train.lr=0.05` adds an experiment.")
        return
    print(format_table(experiments, read_progress([experiment.name for experiment in experiments])))
    print("\n".join(advise(Counter(experiment.state for experiment in experiments), workers)))


def list_experiments(queue: LocalCeleryQueue) -> list[Experiment]:
    """List the experiments: those that workers have taken, in the order in which they did, then those that wait."""
    workers = find_workers()
    failed = {result.entry.stash_rev for result in queue.iter_failed()}
    experiments = []
    for message, entry in queue._iter_processed():  # DVC has no public function with the ID of the task
        if AsyncResult(message.headers["id"]).ready():
            state = FAILED if entry.stash_rev in failed else FINISHED
        else:
            state = RUNNING if has_worker(queue, entry, workers) else GONE
        experiments.append(Experiment(entry, state, message.delivery_tag))
    return experiments + [Experiment(entry, WAITING) for entry in queue.iter_queued()]


def find_workers() -> set[int]:
    """Return the process IDs of the workers of this checkout's queue."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "queue-worker" in process.cmdline() and Path(process.cwd()).is_relative_to(ROOT):
                found.add(process.pid)
    return found


def has_worker(queue: LocalCeleryQueue, entry: QueueEntry, workers: set[int]) -> bool:
    """Whether a worker that is alive has an experiment that has not ended.

    The worker starts a process for the experiment, its child. Before and after that process, the worker itself prepares
    the experiment and collects its results.
    """
    info = queue.proc.get(entry.stash_rev)
    if info is None or info.returncode is not None:
        return bool(workers)
    process = find_process(queue, entry)
    return process is not None and process.ppid() in workers


def find_process(queue: LocalCeleryQueue, entry: QueueEntry) -> psutil.Process | None:
    """Return the process of an experiment, unless it has ended."""
    info = queue.proc.get(entry.stash_rev)
    with suppress(psutil.Error):
        process = psutil.Process(info.pid) if info else None
        # Another process may have got the ID.
        if process and any(entry.stash_rev in word for word in process.cmdline()):
            return process
    return None


def requeue(queue: LocalCeleryQueue, experiment: Experiment) -> None:
    """Put an experiment without a worker back into the queue, and delete what its process has left."""
    entry = experiment.entry
    if process := find_process(queue, entry):  # its results would not be collected
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                each.kill()
                each.wait()
    with suppress(OSError):
        shutil.rmtree(queue._load_info(entry.stash_rev).root_dir)
    message = queue.stash.format_message(entry.head_rev, entry.baseline_rev, entry.name, entry.branch)
    with get_exp_rwlock(queue.repo, writes=[entry.stash_ref]):
        queue.scm.set_ref(entry.stash_ref, entry.stash_rev, message=f"commit: {message}")
    del queue.proc[entry.stash_rev]
    queue.celery.signature(run_exp.s(entry.asdict())).delay()
    # Last, so that the experiment is not lost if this process is killed.
    queue.celery.purge(experiment.delivery_tag)


def read_progress(names: Sequence[str]) -> dict[str, Progress]:
    """Read the progress of experiments from MLflow, by name; those that it does not know are left out.

    Raises:
        UserError: the MLflow store cannot be used.
    """
    uri = store.tracking_uri()
    file = store.sqlite_path(uri)
    if file is not None and not file.exists():
        return {}
    found: dict[str, Progress] = {}
    with store.opening(uri) as client:
        experiment_ids = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(
            experiment_ids,
            "tags.`dvc.experiment` != ''",
            max_results=MAX_RUNS,
            order_by=["attributes.start_time DESC"],
        )
        for run in runs:
            name = run.data.tags["dvc.experiment"]
            if name in names and name not in found:
                found[name] = make_progress(client, run)
    return found


def make_progress(client: Any, run: Any) -> Progress:
    """Collect what the table shows of an MLflow run."""
    metrics, epochs = run.data.metrics, run.data.params.get("train.epochs")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    return Progress(
        epoch=max((metric.step for metric in history), default=None),
        epochs=int(epochs) if epochs else None,
        val_accuracy=metrics.get("val/accuracy"),
        test_accuracy=metrics.get("test_accuracy"),
    )


def format_table(experiments: Sequence[Experiment], progress: dict[str, Progress]) -> str:
    """Format the experiments as a table with aligned columns."""
    table = [["experiment", "state", "epoch", "val accuracy", "test accuracy"]]
    for experiment in experiments:
        known = progress.get(experiment.name, Progress())
        epoch = "-" if known.epoch is None else f"{known.epoch} of {known.epochs}"
        accuracies = ["-" if value is None else f"{value:.2%}" for value in (known.val_accuracy, known.test_accuracy)]
        table.append([experiment.name, experiment.state, epoch, *accuracies])
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def advise(states: Counter[str], workers: int) -> list[str]:
    """Return lines with the counts and what to do."""
    lines = [", ".join(f"{count} {state}" for state, count in states.items())]
    if states[GONE]:
        lines.append("`python tools/queue_status.py --requeue` puts experiments without a worker back into the queue")
    if states[WAITING] and not workers:
        lines.append("no worker is running; `dvc queue start` or `dvc exp run --run-all` starts one")
    if states[FAILED]:
        lines.append("`dvc queue logs NAME` shows why an experiment failed")
    return lines


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"queue_status: {error}")
