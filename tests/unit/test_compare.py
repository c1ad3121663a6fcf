"""How tools/compare.py turns DVC's rows into a table; tests/pipeline/test_compare.py has the real rows."""

from pathlib import Path
from typing import Any

import pytest

import compare
from vision.pipeline.errors import UserError

BASELINE = {"seed": 0.0, "preprocess.fold": 0.0, "train.lr": 0.15, "preprocess.train_limit": "None"}


def row(state: str = "Success", **values: Any) -> compare.Row:
    return {**BASELINE, "State": state, "accuracy": 0.5} | {
        name.replace("__", "."): value for name, value in values.items()
    }


def test_unfinished_and_repeated_experiments_are_excluded() -> None:
    newest, oldest = row(accuracy=0.7), row(accuracy=0.6)
    rows = [newest, row("Failed", seed=1.0), row("Queued", seed=2.0), row("Queued", seed=3.0), oldest]
    finished, excluded = compare.select_finished(rows, repeats=False)
    assert finished == [newest]
    assert excluded == {"failed": 1, "queued": 2, "repeated with the same parameters": 1}
    assert compare.select_finished(rows) == ([newest, oldest], {"failed": 1, "queued": 2})


def test_experiments_that_differ_in_seed_and_fold_are_one_group() -> None:
    rows = [row(), row(seed=1.0), row(preprocess__fold=1.0, train__lr=0.1), row(seed=2.0, train__lr=0.1)]
    assert compare.group_repeats(rows, BASELINE, {}) == {(): rows[:2], ("train.lr=0.1",): rows[2:]}


def test_changes_are_arguments_for_dvc() -> None:
    changed = row(seed=3.0, train__lr=0.05, preprocess__train_limit=1000.0)
    expected = ["seed=3", "preprocess.train_limit=1000", "train.lr=0.05"]
    assert compare.find_changes(changed, BASELINE, {}) == expected
    expected = ["seed=0", "preprocess.train_limit=null", "train.lr=0.15"]
    assert compare.find_changes(BASELINE, changed, {}) == expected
    values = {"True": "true", "False": "false", "None": "null", "[8, 16]": "[8,16]", "muon": "muon"}
    assert {value: compare.format_parameter(value) for value in values} == values


def test_a_recipe_stands_for_its_parameters(tmp_path: Path) -> None:
    (tmp_path / "small").write_text("-S train.lr=0.1\n-S preprocess.train_limit=100\n-S model.convnet.widths=[8,16]\n")
    recipes = compare.read_recipes(tmp_path)
    name = f"{tmp_path.name}/small"
    small: dict[str, Any] = {"train__lr": 0.1, "preprocess__train_limit": 100.0, "model__convnet__widths": "[8, 16]"}
    assert compare.find_changes(row(**small), BASELINE, recipes) == [name]
    assert compare.find_changes(row(**small | {"seed": 1.0}), BASELINE, recipes) == [name, "seed=1"]
    assert compare.find_changes(row(**small | {"train__lr": 0.2}), BASELINE, recipes) == [name, "train.lr=0.2"]
    assert compare.find_changes(row(train__lr=0.1), BASELINE, recipes) == ["train.lr=0.1"]
    assert compare.find_changes(BASELINE, BASELINE, recipes) == []


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("-S train.lr=[")
    with pytest.raises(UserError, match=r"/broken: not a list of `-S parameter=value`"):
        compare.read_recipes(tmp_path)


def test_recipes_have_the_values_of_dvcs_table() -> None:
    small = compare.read_recipes(compare.ROOT / "recipes")["recipes/few"]
    assert small["preprocess.classes"] == "['dog', 'frog', 'horse', 'ship', 'truck']"
    assert small["preprocess.folds"] == "None"
    assert small["train.optimizer.nesterov"] == "True"
    assert small["train.epochs"] == 40.0
    assert small["train.progressive_resizing"] == "[1.0]"


def test_many_changes_are_shortened() -> None:
    changes = ["a=1", "b=2", "c=3"]
    assert compare.format_changes(changes, 2) == "a=1 b=2 … and 1 more"
    assert compare.format_changes(changes, 3) == compare.format_changes(changes, None) == "a=1 b=2 c=3"


def test_the_workspace_is_new_if_no_row_has_its_metrics() -> None:
    rows = [row(accuracy=0.6), row(accuracy=0.7, train__lr=0.1)]
    assert not compare.has_new_result(row(accuracy=0.7), rows), "parameters that were edited but not run"
    assert compare.has_new_result(row(accuracy=0.8), rows)
    assert not compare.has_new_result({"seed": 0.0}, rows), "nothing was run"


def test_rows_without_the_metric_are_last_by_name() -> None:
    rows = [
        row(Experiment="b", accuracy="-"),
        row(Experiment="c", accuracy=0.1),
        row(Experiment="a", accuracy="-"),
        row(rev="main", accuracy=0.2),
        row(Experiment="d", accuracy=0.1),
    ]
    rows.sort(key=lambda row: compare.sort_key(row, "accuracy"))
    assert [compare.row_name(row) for row in rows] == ["main", "c", "d", "a", "b"]


def test_a_metric_of_several_files_needs_the_file() -> None:
    rows = [{"metrics/train.json:seconds": 1.0, "metrics/test.json:seconds": 2.0, "accuracy": 0.5}]
    assert compare.find_column("accuracy", rows) == "accuracy"
    assert compare.find_column("metrics/test.json:seconds", rows) == "metrics/test.json:seconds"
    with pytest.raises(UserError, match=r"choose one of metrics/test\.json:seconds, metrics/train\.json:seconds"):
        compare.find_column("seconds", rows)
    with pytest.raises(UserError, match="--metric loss: no experiment has this metric"):
        compare.find_column("loss", rows)
    assert compare.find_column("loss", []) == "loss"


def test_the_spread_is_the_sample_standard_deviation() -> None:
    rows = [row(accuracy=0.5), row(accuracy=0.7), row(accuracy="-")]
    assert compare.format_metric(rows, "accuracy") == "0.6000 ± 0.1414"
    assert compare.format_metric(rows[:1], "accuracy") == "0.5000"
    assert compare.format_metric(rows[2:], "accuracy") == "-"


def test_the_columns_are_aligned() -> None:
    assert compare.format_table([["n", "accuracy", "x"], ["10", "0.5", "y"]]) == "n   accuracy  x\n10  0.5       y"
