"""How tools/compare.py turns DVC's rows into a table; tests/pipeline/test_compare.py has the real rows."""

from pathlib import Path
from typing import Any

import pytest

import compare
from vision.evaluation.significance import Difference
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


def test_repeats_are_the_rows_with_the_same_parameters_by_seed_and_fold() -> None:
    named, newer, older = row(rev="aaa", Experiment="one"), row(seed=1.0, rev="bbb"), row(seed=1.0, rev="ccc")
    rows = [newer, older, row(train__lr=0.1, seed=2.0, rev="ddd"), named]
    assert compare.find_repeats("one", rows) == {(0.0, 0.0): named, (0.0, 1.0): newer}
    assert compare.find_repeats("aaa", rows)[0.0, 0.0] == named
    with pytest.raises(UserError, match=r"^two: no such finished experiment; "):
        compare.find_repeats("two", rows)


@pytest.mark.parametrize(
    ("value", "low", "high", "p_value", "seeds", "expected"),
    [
        (0.003, 0.001, 0.005, 0.01, 5, ["wide is more accurate than thin."]),
        (-0.003, -0.005, -0.001, 1e-5, 5, ["thin is more accurate than wide."]),
        (0.003, -0.001, 0.007, 0.08, 5, ["The difference may be chance."]),
        (
            0.003, 0.001, 0.005, 0.01, 1,
            [
                "The model of wide is more accurate than the model of thin.",
                "Each has one seed, so this is about these two models. For the parameters, run both with 5 seeds.",
            ],
        ),
    ],
    ids=["better", "worse", "chance", "models"],
)  # fmt: skip
def test_a_difference_is_described_in_a_sentence(
    value: float, low: float, high: float, p_value: float, seeds: int, expected: list[str]
) -> None:
    figures, *sentences = compare.describe_difference("thin", "wide", Difference(value, low, high, p_value), seeds)
    interval = f"{100 * low:+.2f} to {100 * high:+.2f}"
    shown = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
    assert figures.startswith(f"difference: {100 * value:+.2f} points (95% interval {interval}; {shown}, ")
    assert sentences == expected


def test_all_common_seeds_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(seed=float(seed), train__lr=lr, rev=f"{lr}-{seed}") for lr in (0.1, 0.2) for seed in (0, 1, 2)]
    rows.append(row(seed=7.0, train__lr=0.1, rev="only here"))
    correct = {(lr, seed): int(100 * lr) + seed * (1 if lr == 0.1 else 2) for lr in (0.1, 0.2) for seed in range(3)}

    def read(found: compare.Row) -> dict[tuple[str, str], bool]:
        hits = correct[found["train.lr"], int(found["seed"])]
        return {(str(image), "cat"): image < hits for image in range(200)}

    monkeypatch.setattr(compare, "read_correct", read)
    first, second, difference, sentence = compare.compare_pair("0.1-0", "0.2-2", rows).splitlines()
    # 10, 11 and 12 of 200 are correct, and 20, 22 and 24: differences of 5%, 5.5% and 6%.
    assert (first, second) == ("0.1-0: 5.50%", "0.2-2: 11.00%")
    half = 4.30265 * 0.5 / 3**0.5
    interval = f"{5.5 - half:+.2f} to {5.5 + half:+.2f}"
    assert difference.startswith(f"difference: +5.50 points (95% interval {interval}; p = 0.003, paired t-test over 3 ")
    assert sentence == "0.2-2 is more accurate than 0.1-0."


def test_other_test_images_cannot_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "read_correct", lambda found: {(found["rev"], "cat"): True})
    with pytest.raises(UserError, match=r"^a and b: not tested on the same images"):
        compare.compare_pair("a", "b", [row(rev="a"), row(rev="b", train__lr=0.1)])
