"""Search for the parameters that validate best: each trial is a DVC experiment, and an MLflow run below the search's.

    python tools/search.py

The section `search` of params.yaml says what to try, and how. An interrupted search goes on when it is started again.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

# isort: split
from vision.pipeline.errors import UserError
from vision.pipeline.paths import ROOT
from vision.pipeline.stage import run_stage

# isort: split
# What follows takes seconds to import; vision.stage stands before it so that Ctrl-C is one line even then.
import argparse
import difflib
import json
import os
import re
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from tqdm import tqdm

from vision.pipeline.params import Params, SearchParameter, load_params, parameter_names, validate_params
from vision.pipeline.progress import bar
from vision.search import trials
from vision.tracking import mlflow_run
from vision.tracking.run import Run

SCRATCH = ROOT / ".dvc/tmp/search"
"""What the trials print, and the lock that keeps two searches apart."""

SEARCHED = ("seed", "preprocess", "model", "train")
"""The sections whose parameters may be searched; with `download` they are all that a trial's result depends on."""

OVER = (TrialState.COMPLETE, TrialState.PRUNED)
FAILURES = 3
"""The search gives up when so many trials in a row have failed."""


@dataclass(frozen=True)
class Running:
    """A trial that is going on as an experiment of this name."""

    trial: optuna.Trial
    name: str
    process: subprocess.Popen[bytes]
    log: Path


def main() -> None:
    """params.yaml -> optuna.db, an experiment a trial, and their table in MLflow."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = load_params()
    check(params)
    study = begun(params)
    with mlflow_run.search_run(params, study.user_attrs.get("run_id")) as run:
        study.set_user_attr("run_id", (run.record["mlflow"] or {}).get("run_id"))
        try:
            search(study, params, run)
        except KeyboardInterrupt:
            if over(study):
                print(told(study), flush=True)
            raise
        run.set_tags({"ended": "finished", "search": params.search.model_dump()})
        draw(study, run)
    print(told(study))


def check(params: Params) -> None:
    """Refuse a space that cannot be searched, before anything is trained."""
    known = [name for name in parameter_names() if name.split(".")[0] in SEARCHED]
    for number, searched in enumerate(params.search.space):
        name, where = searched.parameter, f"params.yaml: search.space.{number}"
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(f"{where}: {name} cannot be searched" + (f"; did you mean {near[0]}?" if near else ""))
        if name in [other.parameter for other in params.search.space[:number]]:
            raise UserError(f"{where}: {name} is given twice")
        for value in searched.choices or (searched.low, searched.high):
            document = params.model_dump()
            *sections, key = name.split(".")
            section = document
            for part in sections:
                section = section[part]
            section[key] = value
            validate_params(document, f"{where}: with {name} {json.dumps(value)}")
    if params.preprocess.folds is None and not params.preprocess.val_fraction:
        raise UserError("params.yaml: preprocess.val_fraction: a search goes by validation images; set it above 0")


def begun(params: Params) -> optuna.Study:
    """The study, old or new; what was interrupted of an old one is to be tried again first."""
    study = trials.open_study(params.search, params.seed, params.train.epochs)
    fixed = fixed_parameters(params)
    if study.trials:
        before = study.user_attrs["fixed"]
        changed = [name for name in sorted({*fixed, *before}) if before.get(name) != fixed.get(name)]
        if changed:
            raise UserError(
                f"params.yaml: search.study: {study.study_name} was begun with other parameters "
                f"({', '.join(changed)}), so that its trials do not compare with new ones; choose another name"
            )
    elif taken := [name for name in experiments() if re.fullmatch(rf"{study.study_name}-\d+", name)]:
        raise UserError(
            f"params.yaml: search.study: there are experiments of that name already; choose another name, or "
            f"`dvc exp remove {' '.join(sorted(taken))}`"
        )
    study.set_user_attr("fixed", fixed)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def fixed_parameters(params: Params) -> dict[str, Any]:
    """What all trials have in common, and their results depend on."""
    searched = {one.parameter for one in params.search.space}
    fixed = {}
    for name in parameter_names():
        if name.split(".")[0] in (*SEARCHED, "download") and name not in searched:
            value: Any = params
            for part in name.split("."):
                value = getattr(value, part)
            fixed[name] = value
    return fixed


def experiments() -> list[str]:
    """The names of all DVC experiments of this checkout, of whatever commit."""
    command = ["git", "-C", str(ROOT), "for-each-ref", "--format=%(refname)", "refs/exps/*/*/*"]
    listed = subprocess.run(command, capture_output=True, text=True)
    return [name.rpartition("/")[2] for name in listed.stdout.split()]


def search(study: optuna.Study, params: Params, run: Run) -> None:
    """Run trials until the study has as many as are wanted; what is going on ends with the search."""
    running: list[Running] = []
    failures = 0
    form = "{desc}: {n:.0f}/{total:.0f} trials|{bar}| {elapsed}<{remaining}{postfix}"
    begun = {"initial": over(study), "bar_format": form}
    with bar(total=params.search.trials, unit="trial", description="search", **begun) as progress:
        try:
            while True:
                while len(running) < params.search.jobs and over(study) + len(running) < params.search.trials:
                    running.append(start(study, params))
                if not running:
                    return
                time.sleep(0.2)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    if conclude(study, one, run, progress):
                        failures = 0
                    elif (failures := failures + 1) == FAILURES:
                        raise UserError(f"{failures} trials in a row have failed; the last one printed {one.log}")
                progress.set_postfix_str(standing(study, running), refresh=False)
                progress.update(0)
        finally:
            for one in running:
                os.killpg(one.process.pid, signal.SIGINT)
            for one in running:
                one.process.wait()


def over(study: optuna.Study) -> int:
    """How many trials have come to an end, a good or an early one."""
    return len(study.get_trials(deepcopy=False, states=OVER))


def start(study: optuna.Study, params: Params) -> Running:
    """Run one more trial, in a copy of the checkout."""
    trial = study.ask()
    changed = [f"--set-param={one.parameter}={json.dumps(suggested(trial, one))}" for one in params.search.space]
    name = f"{study.study_name}-{trial.number}"
    SCRATCH.mkdir(parents=True, exist_ok=True)
    log = SCRATCH / f"{name}.log"
    environment = os.environ | trials.environment(study.study_name, trial.number, params.search.jobs)
    # The stages are to run with the Python that runs this.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "exp", "run", "--temp", f"--name={name}", *changed],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return Running(trial, name, process, log)


def suggested(trial: optuna.Trial, searched: SearchParameter) -> Any:
    """What the sampler wants to try; a range between whole numbers has whole numbers in it."""
    name, low, high = searched.parameter, searched.low, searched.high
    if searched.choices is not None:
        # Optuna keeps numbers and text, but no lists.
        kept = [json.dumps(value) if isinstance(value, list) else value for value in searched.choices]
        return searched.choices[kept.index(trial.suggest_categorical(name, kept))]
    assert low is not None
    assert high is not None
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=searched.log)
    return trial.suggest_float(name, low, high, log=searched.log)


def conclude(study: optuna.Study, one: Running, run: Run, progress: "tqdm[Any]") -> bool:
    """Tell the study, MLflow and the reader how a trial went; False where it failed."""
    attributes = study.trials[one.trial.number].user_attrs
    accuracy, ended = attributes.get("val_accuracy"), attributes.get("ended")
    finished = one.process.returncode == 0 and accuracy is not None
    is_over = finished or ended == "diverged"
    if finished and ended != "pruned":
        study.tell(one.trial, accuracy)
    elif is_over:
        study.tell(one.trial, state=TrialState.PRUNED)
    else:
        study.tell(one.trial, state=TrialState.FAIL)
        ended = f"failed: {reason(one.log)}"
    changed = ", ".join(f"{name}={plain(value)}" for name, value in one.trial.params.items())
    validated = "" if accuracy is None else f"validation accuracy {accuracy:.2%} in the epoch kept, "
    progress.write(f"{one.name}: {validated}{ended}; {changed}")
    if is_over:
        progress.update()
        best = ranking(study)[0].user_attrs.get("val_accuracy", 0.0)
        figures = {"search/val_accuracy": accuracy or 0.0, "search/best_val_accuracy": best}
        run.log_metrics(figures, step=one.trial.number)
        run.describe_as(table(study))
    return is_over


def reason(log: Path) -> str:
    """The line in which a stage, or else DVC, said what was wrong."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    of_stages = [line for line in lines if re.match(r"(download|preprocess|train|evaluate|report|ERROR): ", line)]
    return next((line for line in of_stages if " done in " not in line), lines[-1] if lines else "it printed nothing")


def standing(study: optuna.Study, running: list[Running]) -> str:
    """Where the trials that are going on stand, and the best one so far."""
    parts = []
    for one in running:
        seen = study.trials[one.trial.number].intermediate_values
        parts.append(f"{one.name} {max(seen.values()):.1%} at epoch {max(seen)}" if seen else f"{one.name} begins")
    if completed := study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        parts.append(f"best {max(trial.value or 0.0 for trial in completed):.2%}")
    return ", ".join(parts)


def ranking(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that ended, the best one first; of those that were ended early their last accuracy counts."""
    ended = study.get_trials(deepcopy=False, states=OVER)
    return sorted(ended, key=lambda trial: (trial.state == TrialState.COMPLETE, trial.value or 0.0), reverse=True)


def table(study: optuna.Study, rows: int = 10) -> str:
    """The best trials as Markdown."""
    searched = list(ranking(study)[0].params)
    lines = [["trial", "validation accuracy", "ended", *searched], ["---"] * (3 + len(searched))]
    for trial in ranking(study)[:rows]:
        accuracy = trial.user_attrs.get("val_accuracy")
        cells = [f"{study.study_name}-{trial.number}", "" if accuracy is None else f"{accuracy:.2%}"]
        values = [plain(trial.params.get(name, "")) for name in searched]
        lines.append([*cells, trial.user_attrs.get("ended", ""), *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(value: object) -> str:
    """A parameter's value in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw(study: optuna.Study, run: Run) -> None:
    """How the search went, as figures in MLflow; those that compare trials need two that went to the end."""
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < 2:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
    from optuna.visualization import matplotlib as plots

    drawn: dict[str, Callable[..., Any]] = {
        "search_history": plots.plot_optimization_history,
        "search_importance": plots.plot_param_importances,
        "search_slices": plots.plot_slice,
    }
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    for name, plot in drawn.items():
        axes = plot(study, target_name="validation accuracy")
        figure = np.ravel(axes)[0].figure  # a plot for each parameter, or one for all
        figure.set_size_inches(max(8, 4 * np.size(axes)), 4.5)
        figure.set_layout_engine("constrained")
        for axis in (one.xaxis for one in np.ravel(axes)):
            if axis.get_scale() == "log":
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_minor_locator(NullLocator())
                axis.set_tick_params(rotation=45)  # they crowd at the upper end
            elif name == "search_history":
                axis.set_major_locator(MaxNLocator(integer=True))  # trials are numbered
        run.log_figure(name, figure)


def told(study: optuna.Study) -> str:
    """What to do with what was found."""
    best = ranking(study)[0]
    if "val_accuracy" not in best.user_attrs:
        return f"search: all {over(study)} trials diverged; search smaller learning rates"
    name = f"{study.study_name}-{best.number}"
    done = over(study)
    return (
        f"search: the best of {done} trial{'s'[: done != 1]} is {name}, validation accuracy "
        f"{best.user_attrs['val_accuracy']:.2%}; `dvc exp apply {name}` brings it here"
    )


if __name__ == "__main__":
    run_stage(main, interrupted="`python tools/search.py` goes on from the trials that are over")
