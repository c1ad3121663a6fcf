"""Compare the DVC experiments of the current commit.

Experiments that differ only in the seed and the fold form one row, with the
mean and the sample standard deviation (n - 1) of each metric.

With --each there is one row per experiment, sorted by the first metric, highest
first. Two rows are added: the commit that the experiments started from, and
`workspace`, the results in your checkout, if no other row has them.

With the names of two experiments, their accuracies on the same test images are
compared. If there are experiments with the same parameters and other seeds or
folds, all seeds and folds that both have are compared.

examples:
    python tools/compare.py
    python tools/compare.py --metric val_loss --metric accuracy
    python tools/compare.py --each
    python tools/compare.py workspace wide
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

# isort: split
import argparse
import csv
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import dvc.api
import numpy as np
from dvc.exceptions import DvcException
from ruamel.yaml import YAML, YAMLError

from vision.evaluation.significance import Difference, compare_models, compare_seeds
from vision.pipeline.errors import UserError
from vision.pipeline.formatting import format_value
from vision.pipeline.params import parameter_names
from vision.pipeline.paths import ROOT

METRICS = ["val_accuracy", "accuracy"]
"""Default metrics: one of metrics/train.json, one of metrics/test.json."""
REPEATED = {"seed", "preprocess.fold"}
"""Parameters in which the experiments of one row differ."""
UNFINISHED = {"Failed", "Queued", "Running"}
ALL_PARAMETERS = frozenset(parameter_names())
PARAMETERS = [name for name in parameter_names() if not name.startswith("search.")]
"""Parameters that an experiment's result depends on."""
PREDICTIONS = "data/predictions/test.csv"
MAX_CHANGES = 4
"""How many changed parameters a row lists without --all-parameters."""

Row = dict[str, Any]
"""An experiment as `dvc.api.exp_show` describes it: name, state, parameters and metrics, by column."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help="two experiments, branches or `workspace`, to compare"
    )
    defaults = " and ".join(METRICS)
    parser.add_argument(
        "--metric", action="append", metavar="NAME", help=f"metric to compare, repeatable (default: {defaults})"
    )
    parser.add_argument("--each", action="store_true", help="print one row per experiment")
    parser.add_argument(
        "--all-parameters", action="store_true", help=f"list all changed parameters, not only the first {MAX_CHANGES}"
    )
    options = parser.parse_args()
    if len(options.experiments) not in (0, 2):
        raise UserError("give two experiments to compare, or none for a table of all")
    metrics = options.metric or METRICS
    max_changes = None if options.all_parameters else MAX_CHANGES

    # The first row is the workspace, the second the commit that the experiments started from.
    try:
        workspace, baseline, *experiments = dvc.api.exp_show(repo=str(ROOT))
    except DvcException as error:
        raise UserError(str(error)) from None
    if options.experiments:
        finished, _ = select_finished([workspace, *experiments, baseline])
        first, second = options.experiments
        print(compare_pair(first, second, finished))
        return
    recipes = read_recipes(ROOT / "recipes")
    if options.each:
        rows, excluded = select_finished(experiments)
        rows.append(baseline)
        if has_new_result(workspace, rows):
            rows.append(workspace)
    else:
        rows, excluded = select_finished(experiments or [workspace], repeats=False)
    columns = [find_column(metric, rows) for metric in metrics]
    # The changed parameters can be long, so they are the last column.
    if options.each:
        table = [["experiment", *metrics, "changed"]]
        for row in sorted(rows, key=lambda row: sort_key(row, columns[0])):
            changes = format_changes(find_changes(row, baseline, recipes), max_changes)
            table.append([row_name(row), *(format_metric([row], column) for column in columns), changes or "nothing"])
    else:
        table = [["n", *metrics, "experiments"]]
        for changed, group in sorted(group_repeats(rows, baseline, recipes).items()):
            changes = format_changes(changed, max_changes)
            table.append([str(len(group)), *(format_metric(group, column) for column in columns), changes or "default"])
    print(format_table(table))
    if excluded:
        print("not counted: " + ", ".join(f"{count} {reason}" for reason, count in excluded.items()))


def read_recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """The parameters that each recipe sets, with values as in a `Row`, by the path of the recipe.

    Raises:
        UserError: a recipe has a value that is not YAML.
    """
    recipes = {}
    for path in sorted(folder.iterdir()):
        name = f"{folder.name}/{path.name}"
        options = [word.partition("=") for word in path.read_text().split() if "=" in word]
        try:
            values = YAML(typ="safe", pure=True).load("\n".join(f"{key}: {value}" for key, _, value in options))
        except YAMLError as error:
            raise UserError(f"{name}: not a list of `-S parameter=value`: {error}") from None
        recipes[name] = {key: to_row_value(value) for key, value in (values or {}).items()}
    return recipes


def to_row_value(value: object) -> float | str:
    """Convert a value of params.yaml as DVC does for its table: numbers to float, everything else to text."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def has_new_result(workspace: Row, rows: Sequence[Row]) -> bool:
    """Whether the workspace has metrics that no other row has. Any two trainings differ, at least in their times."""

    def metrics(row: Row) -> Row:
        return {name: value for name, value in row.items() if isinstance(value, float) and name not in ALL_PARAMETERS}

    return bool(metrics(workspace)) and metrics(workspace) not in map(metrics, rows)


def row_name(row: Row) -> str:
    """The experiment's name, `workspace`, or the branch or short hash of a commit."""
    return row.get("Experiment") or row["rev"]


def sort_key(row: Row, column: str) -> tuple[float, str]:
    """Sorts by a metric, highest first, then by name; rows without the metric are last."""
    return -max(metric_values([row], column), default=-math.inf), row_name(row)


def select_finished(experiments: Sequence[Row], repeats: bool = True) -> tuple[list[Row], Counter[str]]:
    """The finished experiments, and how many were excluded for which reason.

    Args:
        experiments: newest first.
        repeats: whether to select all experiments with the same parameters, not only the newest.
    """
    finished, excluded = [], Counter[str]()
    seen = set()
    for row in experiments:
        values = tuple(row.get(name) for name in PARAMETERS)
        if row["State"] in UNFINISHED:
            excluded[row["State"].lower()] += 1
        elif values in seen and not repeats:
            excluded["repeated with the same parameters"] += 1
        else:
            seen.add(values)
            finished.append(row)
    return finished, excluded


def find_column(metric: str, rows: Sequence[Row]) -> str:
    """The column of a metric: its name, prefixed with its file if several files have a metric of that name.

    Raises:
        UserError: no experiment has the metric, or several files have it.
    """
    found = sorted({name for row in rows for name in row if name == metric or name.endswith(f":{metric}")})
    if len(found) > 1:
        raise UserError(f"--metric {metric}: several files have this metric; choose one of {', '.join(found)}")
    if rows and not found:
        raise UserError(f"--metric {metric}: no experiment has this metric; `dvc metrics show` lists all metrics")
    return found[0] if found else metric


def group_repeats(rows: Sequence[Row], baseline: Row, recipes: Mapping[str, Row]) -> dict[tuple[str, ...], list[Row]]:
    """The experiments by the parameters that they changed, apart from REPEATED."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(find_changes(row, baseline, recipes, exclude=REPEATED))].append(row)
    return groups


def find_changes(row: Row, baseline: Row, recipes: Mapping[str, Row], exclude: Collection[str] = ()) -> list[str]:
    """How the parameters of an experiment differ from those of the baseline, as short as possible.

    Returns:
        `name=value` of each changed parameter; or the path of a recipe, and the parameters changed after it.
    """
    names = [name for name in PARAMETERS if name not in exclude]
    starts = [([], baseline), *(([path], baseline | values) for path, values in recipes.items())]
    return min(
        (
            words + [f"{name}={format_parameter(row.get(name))}" for name in names if row.get(name) != start.get(name)]
            for words, start in starts
        ),
        key=len,
    )


def format_changes(changes: Sequence[str], maximum: int | None) -> str:
    """Format the first `maximum` changes as one line; None means all."""
    more = 0 if maximum is None else len(changes) - maximum
    return " ".join(changes) if more <= 0 else f"{' '.join(changes[:maximum])} … and {more} more"


def format_parameter(value: object) -> str:
    """Format a parameter for `dvc exp run -S`; DVC's table has numbers as float, everything else as text."""
    if isinstance(value, float):
        return format_value(int(value) if value.is_integer() else value, digits=10)
    text = {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
    return text.replace(", ", ",") if text.startswith("[") else text


def metric_values(rows: Sequence[Row], column: str) -> list[float]:
    """The metric of each experiment that has it; one without validation images has no validation accuracy."""
    return [row[column] for row in rows if isinstance(row.get(column), float)]


def format_metric(rows: Sequence[Row], column: str) -> str:
    """Mean and sample standard deviation of a metric, or `-` if no experiment has it."""
    values = metric_values(rows, column)
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def compare_pair(first: str, second: str, rows: Sequence[Row]) -> str:
    """Compare two experiments on the test images, over all seeds and folds that both have.

    Raises:
        UserError: there is no such experiment, its predictions are missing, or the test images are not the same.
    """
    groups = [find_repeats(name, rows) for name in (first, second)]
    common = sorted(groups[0].keys() & groups[1].keys())
    if not common:
        raise UserError(f"{first} and {second} have no seed and fold in common; run both with the same seeds")
    pairs = [[read_correct(group[key]) for group in groups] for key in common]
    for key, (one, other) in zip(common, pairs, strict=True):
        if one.keys() != other.keys():
            names = " and ".join(row_name(group[key]) for group in groups)
            raise UserError(f"{names}: not tested on the same images, so they cannot be compared")
    correct = [[np.array([part[image] for image in pair[0]]) for part in pair] for pair in pairs]
    if len(correct) > 1:
        difference = compare_seeds([float(other.mean() - one.mean()) for one, other in correct])
    else:
        difference = compare_models(correct[0][0], correct[0][1])
    means = [statistics.mean(float(pair[side].mean()) for pair in correct) for side in (0, 1)]
    lines = [f"{name}: {mean:.2%}" for name, mean in zip((first, second), means, strict=True)]
    return "\n".join([*lines, *describe_difference(first, second, difference, len(correct))])


def find_repeats(name: str, rows: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    """The rows with the parameters of the named one, by seed and fold; the newest of several, and itself."""
    named = next((row for row in rows if name in (row_name(row), row["rev"])), None)
    if named is None:
        raise UserError(f"{name}: no such finished experiment; `python tools/compare.py --each` lists them")
    names = [parameter for parameter in PARAMETERS if parameter not in REPEATED]
    repeats = [row for row in rows if all(row.get(each) == named.get(each) for each in names)]
    keys = sorted(REPEATED)
    return {tuple(row.get(key) for key in keys): row for row in [*reversed(repeats), named]}


def read_correct(row: Row) -> dict[tuple[str, str], bool]:
    """Whether each test image was classified correctly, by its name and actual class.

    Raises:
        UserError: the predictions of the experiment are not in the checkout or in DVC's cache.
    """
    try:
        if row["rev"] == "workspace":
            text = (ROOT / PREDICTIONS).read_text(encoding="utf-8")
        else:
            text = dvc.api.read(PREDICTIONS, repo=str(ROOT), rev=row["rev"])
    except (OSError, DvcException):
        raise UserError(
            f"{row_name(row)}: {PREDICTIONS} is not in the checkout or DVC's cache; get it by `dvc pull`, or "
            "run the experiment again"
        ) from None
    table = csv.DictReader(text.splitlines())
    return {(cells["image"], cells["actual"]): cells["actual"] == cells["predicted"] for cells in table}


def describe_difference(first: str, second: str, difference: Difference, seeds: int) -> list[str]:
    """Lines with the difference and its interval in percentage points, and what it means."""
    low, value, high = (f"{100 * number:+.2f}" for number in (difference.low, difference.value, difference.high))
    test = f"paired t-test over {seeds} seeds or folds" if seeds > 1 else "McNemar's test over the test images"
    p_value = "p < 0.001" if difference.p_value < 0.001 else f"p = {difference.p_value:.3f}"
    lines = [f"difference: {value} points (95% interval {low} to {high}; {p_value}, {test})"]
    better, worse = (second, first) if difference.value > 0 else (first, second)
    subject = "" if seeds > 1 else "The model of "
    if difference.is_significant:
        lines.append(f"{subject}{better} is more accurate than {subject.lower()}{worse}.")
    else:
        lines.append("The difference may be chance.")
    if seeds == 1:
        lines.append("Each has one seed, so this is about these two models. For the parameters, run both with 5 seeds.")
    return lines


def format_table(table: Sequence[Sequence[str]]) -> str:
    """The table as text with aligned columns."""
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"compare: {error}")
