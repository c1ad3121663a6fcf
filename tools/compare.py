"""Compare the DVC experiments of the current commit.

Experiments that differ only in the seed and the fold form one row, with the
mean and the sample standard deviation (n - 1) of each metric. With --each there
is one row per experiment, sorted by the first metric, highest first.

examples:
    python tools/compare.py
    python tools/compare.py --metric val_loss --metric accuracy
    python tools/compare.py --each
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

# isort: split
import argparse
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import dvc.api
from dvc.exceptions import DvcException

from vision.pipeline.errors import UserError
from vision.pipeline.formatting import format_value
from vision.pipeline.params import parameter_names
from vision.pipeline.paths import ROOT

METRICS = ["val_accuracy", "accuracy"]
"""Default metrics: one of metrics/train.json, one of metrics/test.json."""
REPEATED = {"seed", "preprocess.fold"}
"""Parameters in which the experiments of one row differ."""
UNFINISHED = {"Failed", "Queued", "Running"}
PARAMETERS = [name for name in parameter_names() if not name.startswith("search.")]
"""Parameters that an experiment's result depends on."""

Row = dict[str, Any]
"""An experiment as `dvc.api.exp_show` describes it: name, state, parameters and metrics, by column."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = " and ".join(METRICS)
    parser.add_argument(
        "--metric", action="append", metavar="NAME", help=f"metric to compare, repeatable (default: {defaults})"
    )
    parser.add_argument("--each", action="store_true", help="print one row per experiment")
    options = parser.parse_args()
    metrics = options.metric or METRICS

    # The first row is the workspace, the second the commit that the experiments started from.
    try:
        workspace, baseline, *experiments = dvc.api.exp_show(repo=str(ROOT))
    except DvcException as error:
        raise UserError(str(error)) from None
    finished, excluded = select_finished(experiments or [workspace])
    columns = [find_column(metric, finished) for metric in metrics]
    # The changed parameters can be long, so they are the last column.
    if options.each:
        table = [["experiment", *metrics, "changed"]]
        finished.sort(key=lambda row: max(metric_values([row], columns[0]), default=-math.inf), reverse=True)
        for row in finished:
            cells = [format_metric([row], column) for column in columns]
            table.append([row["Experiment"] or row["rev"], *cells, format_changes(row, baseline) or "nothing"])
    else:
        table = [["n", *metrics, "experiments"]]
        for changes, rows in sorted(group_repeats(finished, baseline).items()):
            table.append([str(len(rows)), *(format_metric(rows, column) for column in columns), changes or "default"])
    print(format_table(table))
    if excluded:
        print("not counted: " + ", ".join(f"{count} {reason}" for reason, count in excluded.items()))


def select_finished(experiments: Sequence[Row]) -> tuple[list[Row], Counter[str]]:
    """The finished experiments, each set of parameters once, and how many were excluded for which reason.

    Args:
        experiments: newest first; of those with the same parameters the newest is selected.
    """
    finished, excluded = [], Counter[str]()
    seen = set()
    for row in experiments:
        values = tuple(row.get(name) for name in PARAMETERS)
        if row["State"] in UNFINISHED:
            excluded[row["State"].lower()] += 1
        elif values in seen:
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


def group_repeats(rows: Sequence[Row], baseline: Row) -> dict[str, list[Row]]:
    """The experiments by the parameters that they changed, apart from REPEATED."""
    groups = defaultdict(list)
    for row in rows:
        groups[format_changes(row, baseline, exclude=REPEATED)].append(row)
    return groups


def format_changes(row: Row, baseline: Row, exclude: Collection[str] = ()) -> str:
    """The parameters in which an experiment differs from the baseline, as arguments of `dvc exp run -S`."""
    changed = [name for name in PARAMETERS if name not in exclude and row.get(name) != baseline.get(name)]
    return " ".join(f"{name}={format_parameter(row.get(name))}" for name in changed)


def format_parameter(value: object) -> str:
    """Format a parameter as in params.yaml; DVC reports each number as a float and null as the text `None`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return format_value(None if value == "None" else value, digits=10)


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


def format_table(table: Sequence[Sequence[str]]) -> str:
    """The table as text with aligned columns."""
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"compare: {error}")
