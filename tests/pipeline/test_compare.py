"""tools/compare.py on experiments over folds, which the real DVC ran and recorded."""

import json
import re
import statistics
from pathlib import Path

import pytest

from project import Project, clone

pytestmark = pytest.mark.slow

FOLDS = ["-S", "preprocess.folds=2", "-S", "preprocess.fold=range(2)"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone with two finished experiments (folds), one failed and one queued."""
    made = clone(tmp_path_factory.mktemp("compare"))
    made.set(train={"epochs": 1}, tracking={"enabled": False})
    made.commit("one epoch")
    made.run("dvc", "exp", "run", "--queue", *FOLDS)
    made.run("dvc", "exp", "run", "--queue", "-S", "train.lr=-1")
    made.run("dvc", "exp", "run", "--run-all")
    made.run("dvc", "exp", "run", "--queue", "-S", "seed=1")
    return made


def compare(project: Project, *arguments: str, status: int = 0) -> list[str]:
    return project.run("python", "tools/compare.py", *arguments, status=status).splitlines()


def recorded(project: Project, file: str, metric: str) -> list[float]:
    """The metric in the files that DVC committed for each finished experiment."""
    revisions = project.run("dvc", "exp", "list", "--sha-only").split()
    texts = [project.run("git", "show", f"{revision}:{file}") for revision in revisions]
    return [json.loads(text)[metric] for text in texts]


def cell(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def test_folds_are_one_row_with_the_values_of_the_metrics_files(project: Project) -> None:
    validated = recorded(project, "metrics/train.json", "val_accuracy")
    tested = recorded(project, "metrics/test.json", "accuracy")
    assert (len(validated), len(tested)) == (2, 2)
    head, folds, last = compare(project)
    assert re.split(r"\s{2,}", head) == ["n", "val_accuracy", "accuracy", "experiments"]
    assert re.split(r"\s{2,}", folds) == ["2", cell(validated), cell(tested), "preprocess.folds=2"]
    assert head.index("experiments") == folds.index("preprocess.folds")
    assert last == "not counted: 1 queued, 1 failed"


def test_any_metric_can_be_compared(project: Project) -> None:
    _, folds, _ = compare(project, "--metric", "val_loss", "--metric", "seconds")
    losses, seconds = (
        recorded(project, "metrics/train.json", "val_loss"),
        recorded(project, "metrics/speed.json", "seconds"),
    )
    assert re.split(r"\s{2,}", folds)[1:3] == [cell(losses), cell(seconds)]
    (line,) = compare(project, "--metric", "val_los", status=1)
    assert line == "compare: --metric val_los: no experiment has this metric; `dvc metrics show` lists all metrics"


def test_each_experiment_has_a_row_the_best_one_first(project: Project) -> None:
    head, *lines, last = compare(project, "--each", "--metric", "accuracy")
    assert re.split(r"\s{2,}", head) == ["experiment", "accuracy", "changed"]
    cells = [re.split(r"\s{2,}", line) for line in lines]
    assert {name for name, *_ in cells} == set(project.run("dvc", "exp", "list", "--name-only").split())
    scores = sorted(recorded(project, "metrics/test.json", "accuracy"), reverse=True)
    assert [score for _, score, _ in cells] == [f"{score:.4f}" for score in scores]
    assert {words for *_, words in cells} == {"preprocess.folds=2", "preprocess.folds=2 preprocess.fold=1"}
    assert last == "not counted: 1 queued, 1 failed"


def test_a_repeated_experiment_counts_once(project: Project) -> None:
    before = compare(project)[1]
    project.run("dvc", "exp", "run", "--temp", "-n", "again", "-S", "preprocess.folds=2", "-S", "preprocess.fold=1")
    assert compare(project)[1:] == [before, "not counted: 1 repeated with the same parameters, 1 queued, 1 failed"]


def test_an_experiment_without_the_metric_comes_last(project: Project) -> None:
    project.run("dvc", "exp", "run", "--temp", "-n", "unvalidated", "-S", "preprocess.val_fraction=0")
    _, *lines, _ = compare(project, "--each")
    cells = [re.split(r"\s{2,}", line) for line in lines]
    validated = [row[1] for row in cells[:-1]]
    assert validated == sorted(validated, reverse=True)
    assert cells[-1][:2] == ["unvalidated", "-"]
    assert float(cells[-1][2]) > 0


def test_without_experiments_the_workspace_is_shown(tmp_path: Path) -> None:
    alone = clone(tmp_path)
    for name, metric in (("train", "val_accuracy"), ("test", "accuracy")):
        (alone.root / f"metrics/{name}.json").write_text(f'{{"{metric}": 0.5}}')
    _, line = compare(alone)
    assert line.split() == ["1", "0.5000", "0.5000", "default"]
    (alone.root / "metrics/speed.json").write_text('{"accuracy": 0.25}')
    assert compare(alone, "--metric", "metrics/test.json:accuracy")[1].split() == ["1", "0.5000", "default"]
    (line,) = compare(alone, "--metric", "accuracy", status=1)
    assert line.endswith("choose one of metrics/speed.json:accuracy, metrics/test.json:accuracy")
