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


def rows_of(project: Project, *arguments: str) -> dict[str, list[str]]:
    """The rows of `--each` in their order: the metrics and the changed parameters by name."""
    _, *lines = compare(project, "--each", *arguments)
    cells = [re.split(r"\s{2,}", line) for line in lines if not line.startswith("not counted: ")]
    return {name: row for name, *row in cells}


def test_each_experiment_has_a_row_the_best_one_first(project: Project) -> None:
    head, *_, last = compare(project, "--each", "--metric", "accuracy")
    assert re.split(r"\s{2,}", head) == ["experiment", "accuracy", "changed"]
    assert last == "not counted: 1 queued, 1 failed"
    rows = rows_of(project, "--metric", "accuracy")
    committed = project.json("metrics/test.json")["accuracy"]
    assert rows["main"] == [f"{committed:.4f}", "nothing"]
    scores = sorted([*recorded(project, "metrics/test.json", "accuracy"), committed], reverse=True)
    assert [score for score, _ in rows.values()] == [f"{score:.4f}" for score in scores]
    del rows["main"]
    assert set(rows) == set(project.run("dvc", "exp", "list", "--name-only").split())
    assert {words for _, words in rows.values()} == {"preprocess.folds=2", "preprocess.folds=2 preprocess.fold=1"}


def test_a_repeated_experiment_counts_once(project: Project) -> None:
    before = compare(project)[1]
    project.run("dvc", "exp", "run", "--temp", "-n", "again", "-S", "preprocess.folds=2", "-S", "preprocess.fold=1")
    assert compare(project)[1:] == [before, "not counted: 1 repeated with the same parameters, 1 queued, 1 failed"]
    assert rows_of(project)["again"][-1] == "preprocess.folds=2 preprocess.fold=1"


def test_experiments_without_the_metric_come_last(project: Project) -> None:
    for name, seed in (("unvalidated-b", 0), ("unvalidated-a", 1)):
        changes = ["-S", "preprocess.val_fraction=0", "-S", f"seed={seed}"]
        project.run("dvc", "exp", "run", "--temp", "-n", name, *changes)
    rows = rows_of(project)
    *validated, (first, one), (second, other) = rows.items()
    assert (first, second) == ("unvalidated-a", "unvalidated-b")
    assert one[0] == other[0] == "-"
    assert float(one[1]) > 0
    assert one[2] == "seed=1 preprocess.val_fraction=0"
    scores = [row[0] for _, row in validated]
    assert scores == sorted(scores, reverse=True)


def test_a_recipe_is_named_and_many_changes_are_shortened(project: Project) -> None:
    recipe = (project.root / "recipes/two_conv").read_text().split()
    changes = ["seed=1", "model.plain_cnn.widths=[8,8]", "train.epochs=1", "train.batch_size=50"]
    options = [word for change in changes for word in ("-S", change)]
    project.run("dvc", "exp", "run", "--temp", "-n", "recipe", *recipe, *options)
    described = ["recipes/two_conv", *changes]
    assert rows_of(project)["recipe"][-1] == " ".join(described[:4]) + " … and 1 more"
    assert rows_of(project, "--all-parameters")["recipe"][-1] == " ".join(described)


def test_two_experiments_are_compared_on_the_same_images(project: Project) -> None:
    """The predictions are those that DVC has in its cache, of experiments with the same seed and fold."""
    (name,) = (name for name, row in rows_of(project).items() if row[-1] == "preprocess.folds=2")
    other = "unvalidated-b"
    first, second, difference, _, note = compare(project, name, other)
    metrics = [project.run("git", "show", f"{reference(project, each)}:metrics/test.json") for each in (name, other)]
    accuracies = [json.loads(text)["accuracy"] for text in metrics]
    assert [first, second] == [f"{name}: {accuracies[0]:.2%}", f"{other}: {accuracies[1]:.2%}"]
    assert difference.startswith(f"difference: {100 * (accuracies[1] - accuracies[0]):+.2f} points (95% interval ")
    assert "McNemar's test" in difference
    assert note.startswith("Each has one seed")


def test_two_experiments_that_cannot_be_compared_are_refused_in_one_line(project: Project) -> None:
    (name,) = (name for name, row in rows_of(project).items() if row[-1] == "preprocess.folds=2")
    (line,) = compare(project, name, "recipe", status=1)
    assert line.startswith(f"compare: {name} and recipe have no seed and fold in common; ")
    (line,) = compare(project, name, "main", status=1)
    assert line.startswith("compare: main: data/predictions/test.csv is not in the checkout or DVC's cache; ")
    (line,) = compare(project, name, status=1)
    assert line == "compare: give two experiments to compare, or none for a table of all"


def reference(project: Project, name: str) -> str:
    """The Git reference of an experiment."""
    found = project.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return next(line for line in found if line.endswith(f"/{name}"))


def test_the_result_of_the_workspace_is_a_row(project: Project) -> None:
    assert "workspace" not in rows_of(project)
    project.set(train={"lr": 0.05})
    assert "workspace" not in rows_of(project), "the metrics are still those of the commit"
    project.run("dvc", "repro")
    score = project.json("metrics/train.json")["val_accuracy"]
    assert rows_of(project)["workspace"][0] == f"{score:.4f}"
    assert rows_of(project)["workspace"][-1] == "train.lr=0.05"
    assert all("train.lr" not in line for line in compare(project))


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
