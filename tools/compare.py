"""Compare the experiments of the current commit: those that differ in seed and fold alone are one line of the table.

    python tools/compare.py
    python tools/compare.py --metric val_loss --metric accuracy
    python tools/compare.py --each                     # a line for each experiment, the most accurate first

A figure is the mean and the sample standard deviation (n - 1) over the experiments of the line.
"""

import argparse
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

# isort: split
import dvc.api
from dvc.exceptions import DvcException

from vision.pipeline.errors import UserError
from vision.pipeline.params import parameter_names
from vision.pipeline.paths import ROOT

METRICS = ["val_accuracy", "accuracy"]
"""One of metrics/train.json, one of metrics/test.json."""
REPEATED = {"seed", "preprocess.fold"}
UNFINISHED = {"Failed", "Queued", "Running"}
PARAMETERS = [name for name in parameter_names() if not name.startswith("search.")]
"""What an experiment depends on."""

Row = dict[str, Any]
"""What `dvc.api.exp_show` says of an experiment: its name, state, parameters and metrics, by column."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="means and standard deviations of experiments over seeds and folds")
    parser.add_argument("--metric", action="append", help="what to compare, as often as you like", metavar="NAME")
    parser.add_argument("--each", action="store_true", help="a line for each, the highest of the first metric first")
    options = parser.parse_args()
    wanted = options.metric or METRICS

    # First comes the workspace, then the commit that the experiments started from.
    try:
        workspace, baseline, *experiments = dvc.api.exp_show(repo=str(ROOT))
    except DvcException as error:
        raise UserError(str(error)) from None
    experiments = experiments or [workspace]
    finished, left_out = [], Counter[str]()
    seen = set()
    for row in experiments:  # the newest first
        values = tuple(row.get(name) for name in PARAMETERS)
        if row["State"] in UNFINISHED:
            left_out[row["State"].lower()] += 1
        elif values in seen:
            left_out["run again with the same parameters"] += 1
        else:
            seen.add(values)
            finished.append(row)

    columns = [column(name, finished) for name in wanted]
    # What was changed may be long, so it comes last.
    if options.each:
        lines = [["experiment", *wanted, "changed"]]
        for row in sorted(finished, key=lambda row: max(figures([row], columns[0]), default=-math.inf), reverse=True):
            cells = [spread([row], name) for name in columns]
            lines.append([row["Experiment"] or row["rev"], *cells, changed(row, baseline) or "nothing"])
    else:
        lines = [["n", *wanted, "experiments"]]
        for title, rows in sorted(grouped(finished, baseline).items()):
            lines.append([str(len(rows)), *(spread(rows, name) for name in columns), title or "default"])
    print(aligned(lines))
    if left_out:
        print("not counted: " + ", ".join(f"{count} {why}" for why, count in left_out.items()))


def column(metric: str, rows: Sequence[Row]) -> str:
    """The column that a metric is in: its name, after that of its file where other files have the same name too.

    Raises:
        UserError: there are experiments, but none has it, or more than one file has.
    """
    found = sorted({name for row in rows for name in row if name == metric or name.endswith(f":{metric}")})
    if len(found) > 1:
        raise UserError(f"--metric {metric}: is in several files; say which: {', '.join(found)}")
    if rows and not found:
        raise UserError(f"--metric {metric}: no experiment has it; `dvc metrics show` lists what there is")
    return found[0] if found else metric


def grouped(rows: Sequence[Row], baseline: Row) -> dict[str, list[Row]]:
    """The experiments by what they changed in the baseline's parameters, other than the seed and the fold."""
    groups = defaultdict(list)
    for row in rows:
        groups[changed(row, baseline, REPEATED)].append(row)
    return groups


def changed(row: Row, baseline: Row, leaving_out: Collection[str] = ()) -> str:
    """What an experiment changed in the baseline's parameters, as words for `-S`."""
    names = [name for name in PARAMETERS if name not in leaving_out and row.get(name) != baseline.get(name)]
    return " ".join(f"{name}={plain(row.get(name))}" for name in names)


def plain(value: object) -> str:
    """A parameter as it stands in params.yaml; DVC has made a float of every number and text of null."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return "null" if value in (None, "None") else str(value)


def figures(rows: Sequence[Row], name: str) -> list[float]:
    """A metric of the experiments that have it; those without validation images have no validation accuracy."""
    return [row[name] for row in rows if isinstance(row.get(name), float)]


def spread(rows: Sequence[Row], name: str) -> str:
    """Mean and sample standard deviation of a metric; `-` where no experiment has it."""
    values = figures(rows, name)
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table of text, its columns as wide as their widest cells."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"compare: {error}")
