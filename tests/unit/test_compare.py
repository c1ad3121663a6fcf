"""How tools/compare.py turns DVC's rows into a table; tests/pipeline/test_compare.py has the real rows."""

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
    finished, excluded = compare.select_finished(rows)
    assert finished == [newest]
    assert excluded == {"failed": 1, "queued": 2, "repeated with the same parameters": 1}


def test_experiments_that_differ_in_seed_and_fold_are_one_group() -> None:
    rows = [row(), row(seed=1.0), row(preprocess__fold=1.0, train__lr=0.1), row(seed=2.0, train__lr=0.1)]
    assert compare.group_repeats(rows, BASELINE) == {"": rows[:2], "train.lr=0.1": rows[2:]}


def test_changes_are_arguments_for_dvc() -> None:
    changed = row(seed=3.0, train__lr=0.05, preprocess__train_limit=1000.0)
    assert compare.format_changes(changed, BASELINE) == "seed=3 preprocess.train_limit=1000 train.lr=0.05"
    assert compare.format_changes(BASELINE, changed) == "seed=0 preprocess.train_limit=null train.lr=0.15"


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
