"""Measure what a run of the pipeline costs besides training: seconds of DVC's commands, by stage and by cause.

    python benchmarks/overhead.py                      # 3 rounds on CIFAR-10, from the user's download cache
    python benchmarks/overhead.py --compare ../before  # another checkout too, in turn

Each round clones the checkout and runs it, with and without MLflow. The clone runs all five stages on all of CIFAR-10.
Only the training is small: 8 filters, one epoch of nine steps, images of 8x8 pixels. Each stage runs under a clock. It
observes imports, calls of `vision.tracking` and `loop.fit`, and assigns time to the innermost of them.

The figures are medians: wall-clock seconds, and CPU seconds in parentheses, which say more on a busy machine.
"""

import argparse
import atexit
import builtins
import contextlib
import functools
import json
import os
import resource
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]

START, IMPORTS, TRAINING, WORK = "start of Python", "imports", "training", "own work"
M_IMPORTS, M_RUN, M_MODEL = "MLflow: imports", "MLflow: open and close the run", "MLflow: export the model"
M_REGISTRY, M_LOG = "MLflow: registry", "MLflow: log everything else"
CAUSES = [START, IMPORTS, M_IMPORTS, M_RUN, M_LOG, M_MODEL, M_REGISTRY, WORK, TRAINING]
STAGES = ["download", "preprocess", "train", "evaluate", "report"]
SMALL = {
    "model.convnet": {"widths": [8], "depth": 1},
    "train": {"epochs": 1, "batch_size": 5000, "progressive_resizing": [0.25], "hard_example_fraction": [1.0]},
    "search": {"trials": 1},
}
COMMANDS = {
    "`dvc repro` from scratch": ["dvc", "repro"],
    "`dvc repro` with nothing to do": ["dvc", "repro"],
    "`dvc exp run -S train.lr=0.1`": ["dvc", "exp", "run", "-S", "train.lr=0.1"],
    "`dvc exp run --temp -S train.lr=0.05`": ["dvc", "exp", "run", "--temp", "-S", "train.lr=0.05"],
    "`python tools/search.py`, one trial": ["python", "tools/search.py"],
    "... `search.py` again, for two more": [
        "sh",
        "-c",
        "sed -i.old 's/trials: 1$/trials: 3/' params.yaml && exec python tools/search.py",
    ],
}


class Cost(NamedTuple):
    """Wall-clock and CPU seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def plus(self, other: "Cost", sign: int = 1) -> "Cost":
        """Return the sum, or the difference if `sign` is -1."""
        return Cost(self.wall + sign * other.wall, self.cpu + sign * other.cpu)


class Clock:
    """Assigns the time of this process's main thread to causes, each moment to the innermost one."""

    def __init__(self) -> None:
        """Start with the cause WORK. The time so far, of starting Python and importing this file, is that of START."""
        self.cause = WORK
        self._since = self._now()
        self.spent: dict[str, Cost] = defaultdict(Cost, {START: Cost(self._since.cpu, self._since.cpu)})

    @contextmanager
    def during(self, cause: str) -> Iterator[None]:
        """Assign the time of the block to `cause`, except for that of causes inside it."""
        outer = self.cause
        self.switch(cause)
        try:
            yield
        finally:
            self.switch(outer)

    def switch(self, cause: str) -> None:
        """Assign the time from now on to `cause`."""
        now = self._now()
        self.spent[self.cause] = self.spent[self.cause].plus(now).plus(self._since, -1)
        self.cause, self._since = cause, now

    def around(self, function: Callable[..., Any], cause: str) -> Callable[..., Any]:
        """Return the function with its calls assigned to `cause`."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.during(cause):
                return function(*arguments, **options)

        return timed

    @staticmethod
    def _now() -> Cost:
        return Cost(time.perf_counter(), time.process_time())


def run_stage(script: str, into: Path) -> None:
    """Run a stage's script under a clock; write the times to a file in `into` when the process ends."""
    clock = Clock()
    stage = Path(script).stem

    def write() -> None:
        clock.switch(WORK)
        into.joinpath(f"{stage}.json").write_text(json.dumps(clock.spent))

    atexit.register(write)  # registered first, so called last
    follow(clock)
    sys.argv = [script]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


def follow(clock: Clock) -> None:
    """Assign imports, and calls of `vision.tracking` and `vision.core.loop` once these are imported."""
    original_import = builtins.__import__
    pending: dict[str, Callable[[Any, Clock], None]] = {
        "vision.tracking.mlflow_run": follow_runs,
        "vision.core.loop": follow_training,
    }

    def timed(*arguments: Any, **options: Any) -> Any:
        if clock.cause in (IMPORTS, M_IMPORTS) or threading.current_thread() is not threading.main_thread():
            return original_import(*arguments, **options)
        with clock.during(M_IMPORTS if clock.cause.startswith("MLflow") else IMPORTS):
            module = original_import(*arguments, **options)
        for name in pending.keys() & sys.modules.keys():
            pending.pop(name)(sys.modules[name], clock)
        return module

    builtins.__import__ = timed


def follow_training(loop: Any, clock: Clock) -> None:
    """Assign the calls of `fit` to TRAINING."""
    loop.fit = clock.around(loop.fit, TRAINING)


def follow_runs(tracking: Any, clock: Clock) -> None:
    """Assign opening and closing of runs, and the calls of their methods, to the causes of MLflow."""

    def timed(opening: Callable[..., AbstractContextManager[Any]]) -> Callable[..., AbstractContextManager[Any]]:
        @contextmanager
        def timed_opening(*arguments: Any, **options: Any) -> Iterator[Any]:
            with clock.during(M_RUN), opening(*arguments, **options) as run, clock.during(WORK):
                causes = {"log_model": M_MODEL, "register_model": M_REGISTRY}
                for name in dir(run):
                    if not name.startswith("_") and callable(method := getattr(run, name)):
                        setattr(run, name, clock.around(method, causes.get(name, M_LOG)))
                yield run

        return timed_opening

    tracking.training_run = timed(tracking.training_run)
    tracking.resumed_run = timed(tracking.resumed_run)


class Clone:
    """A copy of a checkout with its own Git history and cache, whose stages run under a clock."""

    def __init__(self, checkout: Path, folder: Path, tracking: bool) -> None:
        """Copy the files that Git tracks, or would track, to `folder`."""
        import yaml  # here, because a stage's process does not need it

        self.root = folder / "project"
        self.clocks = folder / "clocks"
        self.home = folder / "home"
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=checkout, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            if (checkout / name).is_file() and name != "dvc.lock":
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(checkout / name, self.root / name)
        params = yaml.safe_load((self.root / "params.yaml").read_text())
        for path, values in {**SMALL, "tracking": {"enabled": tracking}}.items():
            if path not in params and "." not in path:
                continue  # an older checkout
            section = functools.reduce(lambda section, key: section[key], path.split("."), params)
            section |= values
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        pipeline = self.root / "dvc.yaml"
        under_clock = f"python {shlex.quote(__file__)} --into {shlex.quote(str(self.clocks))} --stage stages/"
        pipeline.write_text(pipeline.read_text().replace("cmd: python stages/", f"cmd: {under_clock}"))
        self.run("git", "init", "--quiet")
        self.commit()

    def commit(self) -> None:
        """Commit all changes."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message=benchmark")

    def run(self, *command: str) -> tuple[Cost, dict[str, dict[str, Cost]]]:
        """Run a command; return its total cost, and the cost of each stage by cause."""
        shutil.rmtree(self.clocks, ignore_errors=True)
        self.clocks.mkdir()
        # Without compiled files, Python would compile every module again in each process.
        left_out = ("DVC_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        person = {f"GIT_{who}_{what}": "benchmark" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        place = {"DVC_SITE_CACHE_DIR": str(self.home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        began, used = time.perf_counter(), cpu_of_children()
        done = subprocess.run(
            command, cwd=self.root, env=inherited | person | place, text=True, capture_output=True, check=False
        )
        cost = Cost(time.perf_counter() - began, cpu_of_children() - used)
        if done.returncode:
            sys.exit(f"overhead.py: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        files = {path.stem: json.loads(path.read_text()) for path in self.clocks.iterdir()}
        return cost, {stage: {cause: Cost(*spent[cause]) for cause in spent} for stage, spent in files.items()}


def cpu_of_children() -> float:
    """Return the CPU seconds of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(checkout: Path, tracking: bool, commands: dict[str, list[str]]) -> dict[tuple[str, ...], Cost]:
    """Run the commands in a new clone.

    Returns:
        The cost of a command by (command,); of its training by (command, "training"); of DVC, including the ends of the
        stages' processes, by (command, "DVC"); and everything else by (command, stage, cause).
    """
    found: dict[tuple[str, ...], Cost] = {}
    with tempfile.TemporaryDirectory() as folder:
        clone = Clone(checkout, Path(folder), tracking)
        for title, command in commands.items():
            if "search.py" in title and not (clone.root / "tools/search.py").is_file():
                continue  # an older checkout
            total, stages = clone.run(*command)
            clone.commit()
            everything = [cost for causes in stages.values() for cost in causes.values()]
            found[(title,)] = total
            found[title, "training"] = stages.get("train", {}).get(TRAINING, Cost())
            found[title, "DVC"] = functools.reduce(lambda remaining, cost: remaining.plus(cost, -1), everything, total)
            for stage, causes in stages.items():
                found |= {(title, stage, cause): cost for cause, cost in causes.items()}
    return found


def cell(costs: list[Cost]) -> str:
    """Return the medians."""
    wall, cpu = (statistics.median(column) for column in zip(*costs, strict=True))
    return f"{wall:.2f} ({cpu:.2f})"


def without_training(found: dict[tuple[str, ...], Cost], title: str) -> Cost:
    """Return the cost of a command without training."""
    return found[(title,)].plus(found[title, "training"], -1)


def print_commands(rounds: list[dict[tuple[str, ...], Cost]]) -> None:
    """Print the table of commands."""
    print("| command | total | training | DVC | without training | from, to |")
    print("|---|---|---|---|---|---|")
    for title in (key[0] for key in rounds[0] if len(key) == 1):
        rest = [without_training(found, title) for found in rounds]
        spread = f"{min(rest).wall:.1f}, {max(rest).wall:.1f}"
        cells = [cell([found[key] for found in rounds]) for key in ((title,), (title, "training"), (title, "DVC"))]
        print(f"| {' | '.join([title, *cells, cell(rest), spread])} |")


def print_causes(rounds: list[dict[tuple[str, ...], Cost]]) -> None:
    """Print the table of `dvc repro` from scratch, by stage and cause."""
    title = next(iter(COMMANDS))

    def total(found: dict[tuple[str, ...], Cost], stages: list[str], causes: list[str]) -> Cost:
        costs = [found.get((title, stage, cause), Cost()) for stage in stages for cause in causes]
        return functools.reduce(Cost.plus, costs)

    print(f"| cause | {' | '.join(STAGES)} | total |")
    print(f"|---|{'---|' * (len(STAGES) + 1)}")
    for name, causes in {**{cause: [cause] for cause in CAUSES}, "total": CAUSES}.items():
        columns = [*([stage] for stage in STAGES), STAGES]
        cells = [cell([total(found, stages, causes) for found in rounds]) for stages in columns]
        print(f"| {name} | {' | '.join(cells).replace('0.00 (0.00)', '')} |")
    dvc = cell([found[title, "DVC"] for found in rounds])
    print(f"| DVC and the ends of processes |{' |' * len(STAGES)} {dvc} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compare", type=Path, help="another checkout, measured in turn", metavar="PATH")
    parser.add_argument("--scratch", action="store_true", help="measure only `dvc repro` from scratch")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage, options.into)
        return
    if options.rounds < 1:
        sys.exit("overhead.py: --rounds must be at least 1")
    if options.compare and not (options.compare / "dvc.yaml").is_file():
        sys.exit(f"overhead.py: --compare {options.compare}: no dvc.yaml there; give a checkout of this project")

    scratch = dict(list(COMMANDS.items())[:1])
    commands = scratch if options.scratch else COMMANDS
    variants: dict[str, Callable[[], dict[tuple[str, ...], Cost]]] = {
        "this checkout": lambda: measured(ROOT, True, commands),
        "this checkout, tracking.enabled=false": lambda: measured(ROOT, False, scratch),
    }
    if options.compare:
        variants["the other checkout"] = lambda: measured(options.compare.resolve(), True, commands)
    measured(ROOT, True, scratch)  # compiles what is imported, fills the system's cache of files
    results: dict[str, list[dict[tuple[str, ...], Cost]]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, measure in variants.items():
            results[name].append(measure())

    print(f"Medians of {options.rounds} rounds, in turn: wall-clock seconds (CPU seconds).")
    for name, rounds in results.items():
        print(f"\n{name}\n")
        print_commands(rounds)
        if name != "this checkout, tracking.enabled=false":
            print()
            print_causes(rounds)
    if options.compare:
        print()
        for title in (title for title in commands if (title,) in results["the other checkout"][0]):
            pairs = zip(results["this checkout"], results["the other checkout"], strict=True)
            both = [(without_training(ours, title), without_training(theirs, title)) for ours, theirs in pairs]
            ratios = [[here / there for here, there in zip(*costs, strict=True)] for costs in both]
            wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
            print(f"{title}, this checkout / the other one, without training: {wall:.2f} ({cpu:.2f})")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
