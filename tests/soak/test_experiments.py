"""Many small experiments through DVC's queue, two at a time: none is lost, and each is complete in DVC and MLflow.

    pytest -m soak -n 0 -s tests/soak/test_experiments.py                # 50 experiments, about 45 minutes
    SOAK_EXPERIMENTS=5 pytest -m soak -n 0 -s tests/soak/test_experiments.py

The data set and the network are small: the subject is DVC, MLflow and what connects them, not the training.
"""

import os
import time
from pathlib import Path

import pytest

from project import clone
from queue_checks import count_results, find_errors, find_wrong, queue_experiments, run_queue
from servers import mlflow_server

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]

EXPERIMENTS = int(os.environ.get("SOAK_EXPERIMENTS", "50"))
"""Number of experiments: five learning rates times a fifth as many seeds."""
RATES = "train.lr=0.05,0.1,0.15,0.2,0.25"


def test_all_experiments_are_complete(tmp_path: Path) -> None:
    assert EXPERIMENTS >= 5
    assert EXPERIMENTS % 5 == 0, "SOAK_EXPERIMENTS is a multiple of 5"
    run_and_check(tmp_path, RATES, f"seed=range({EXPERIMENTS // 5})")


def test_experiments_on_a_server_are_complete(tmp_path: Path) -> None:
    with mlflow_server(f"sqlite:///{tmp_path}/server.db", tmp_path, workers=1) as server:
        run_and_check(tmp_path, "seed=range(4)", tracking_uri=server.address)


def run_and_check(folder: Path, *settings: str, tracking_uri: str | None = None) -> None:
    """Run the experiments in a new clone, print a table of counts, and assert that all are as expected."""
    project = clone(folder)
    project.run("dvc", "repro", "preprocess")
    project.commit("the data")
    names = queue_experiments(project, *settings)
    started = time.perf_counter()
    cpu_seconds = run_queue(project, tracking_uri)
    seconds = time.perf_counter() - started
    counts = count_results(project, names, tracking_uri)
    print(f"\n| of {len(names)} experiments | found | expected |\n|---|---|---|")
    for count in counts:
        print(f"| {count.name} | {count.found} | {count.expected} |")
    print(f"{seconds:.0f} s, {cpu_seconds:.0f} CPU seconds; {seconds / len(names):.1f} s per experiment")
    assert find_wrong(counts) == [], find_errors(project)
