"""Runs the trials of a study as DVC experiments, several at a time, and records their results."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from tqdm import tqdm

from vision.pipeline.errors import UserError
from vision.pipeline.formatting import format_value
from vision.pipeline.params import Params
from vision.pipeline.paths import ROOT
from vision.pipeline.progress import bar
from vision.search.space import suggest
from vision.search.study import count_finished, format_table, rank_trials
from vision.search.trial import trial_environment
from vision.tracking.run import Run

LOGS = ROOT / ".dvc/tmp/search"
"""Directory of the trials' output, one file per trial."""

MAX_FAILURES = 3
"""The search stops after this many failed trials in a row."""

POLL_SECONDS = 0.2
"""Seconds between polls of the child processes; a poll does not read the database."""

REFRESH_SECONDS = 2.0
"""Seconds between updates of the status line; an update reads the database."""


@dataclass(frozen=True)
class RunningTrial:
    """A trial whose experiment is running; the process leads its own process group."""

    trial: optuna.Trial
    name: str
    process: subprocess.Popen[bytes]
    log: Path


def experiment_command(name: str, changes: Sequence[str]) -> list[str]:
    """The command that runs an experiment in a copy of the checkout; `changes` are `section.key=value`."""
    changed = [f"--set-param={change}" for change in changes]
    return [sys.executable, "-m", "dvc", "exp", "run", "--temp", f"--name={name}", *changed]


class TrialRunner:
    """Runs trials until the study has `search.trials` finished ones, `search.jobs` at a time."""

    def __init__(
        self,
        study: optuna.Study,
        params: Params,
        run: Run,
        command: Callable[[str, Sequence[str]], list[str]] = experiment_command,
    ) -> None:
        """Prepare to run trials.

        Args:
            study: where trials come from and results go.
            params: the whole of params.yaml.
            run: the search's MLflow run.
            command: from a trial's name and parameters to the command that runs it.
        """
        self.study, self.params, self.mlflow_run, self.command = study, params, run, command
        self.running: list[RunningTrial] = []
        self.finished = count_finished(study)
        self._failures = 0
        self._next_refresh = 0.0

    def run(self) -> None:
        """Run all trials that are missing. However this ends, it stops the running trials first.

        Raises:
            UserError: MAX_FAILURES trials in a row failed.
        """
        jobs, total = self.params.search.jobs, self.params.search.trials
        form = "{desc}: {n:.0f}/{total:.0f} trials|{bar}| {elapsed}<{remaining}{postfix}"
        with bar(total, "trial", "search", initial=self.finished, bar_format=form) as progress_bar:
            try:
                while True:
                    while len(self.running) < jobs and self.finished + len(self.running) < total:
                        self.running.append(self.start_trial())
                    if not self.running:
                        return
                    time.sleep(POLL_SECONDS)
                    self.poll(progress_bar)
            finally:
                stop_trials(self.running)

    def start_trial(self) -> RunningTrial:
        """Start the experiment of one more trial."""
        trial = self.study.ask()
        name = f"{self.study.study_name}-{trial.number}"
        changes = [f"{entry.parameter}={json.dumps(suggest(trial, entry))}" for entry in self.params.search.space]
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"{name}.log"
        environment = os.environ | trial_environment(self.study.study_name, trial.number, self.params.search.jobs)
        # The stages run with the same Python as the search.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(name, changes),
                cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return RunningTrial(trial, name, process, log)

    def poll(self, progress_bar: "tqdm[Any]") -> None:
        """Record the trials that have ended, and update the progress bar.

        Reads the database only if a trial has ended or the status line is older than REFRESH_SECONDS.

        Raises:
            UserError: MAX_FAILURES trials in a row failed.
        """
        ended = [trial for trial in self.running if trial.process.poll() is not None]
        for trial in ended:
            self.running.remove(trial)
            self._record_result(trial, progress_bar)
        if ended or time.monotonic() >= self._next_refresh:
            progress_bar.set_postfix_str(self._format_status(), refresh=False)
            self._next_refresh = time.monotonic() + REFRESH_SECONDS
        progress_bar.update(0)

    def _record_result(self, ended: RunningTrial, progress_bar: "tqdm[Any]") -> None:
        """Write the result of a trial to the study, to MLflow and above the progress bar."""
        number = ended.trial.number
        attributes = self.study.get_trials(deepcopy=False)[number].user_attrs
        accuracy, reason = attributes.get("val_accuracy"), attributes.get("ended")
        succeeded = ended.process.returncode == 0 and accuracy is not None
        finished = succeeded or reason == "diverged"
        if succeeded and reason != "pruned":
            self.study.tell(number, accuracy)
        elif finished:
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self.study.tell(number, state=TrialState.FAIL)
            reason = f"failed: {find_error(ended.log)}"
        values = ", ".join(f"{name}={format_value(value, digits=4)}" for name, value in ended.trial.params.items())
        validated = "" if accuracy is None else f"validation accuracy {accuracy:.2%} at the best epoch, "
        progress_bar.write(f"{ended.name}: {validated}{reason}; {values}")
        if not finished:
            self._failures += 1
            if self._failures == MAX_FAILURES:
                raise UserError(f"{MAX_FAILURES} trials in a row failed; the log of the last one is {ended.log}")
            return
        self._failures = 0
        self.finished += 1
        progress_bar.update()
        best = rank_trials(self.study)[0].user_attrs.get("val_accuracy", 0.0)
        metrics = {"search/val_accuracy": accuracy or 0.0, "search/best_val_accuracy": best}
        self.mlflow_run.log_metrics(metrics, step=number)
        self.mlflow_run.set_description(format_table(self.study))

    def _format_status(self) -> str:
        """The accuracy of each running trial so far, and the best finished one."""
        trials = self.study.get_trials(deepcopy=False)
        parts = []
        for running in self.running:
            values = trials[running.trial.number].intermediate_values
            progress = f"{max(values.values()):.1%} at epoch {max(values)}" if values else "is starting"
            parts.append(f"{running.name} {progress}")
        if completed := [trial.value or 0.0 for trial in trials if trial.state == TrialState.COMPLETE]:
            parts.append(f"best {max(completed):.2%}")
        return ", ".join(parts)


def stop_trials(running: Sequence[RunningTrial]) -> None:
    """Interrupt the processes of all these trials as Ctrl-C does, and wait until they have ended."""
    for trial in running:
        # The process may have ended: Linux then has no such group, and macOS does not permit signals to it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(trial.process.pid, signal.SIGINT)
    for trial in running:
        trial.process.wait()


def find_error(log: Path) -> str:
    """The line of a trial's log that says why it failed: the stage's last line, or else DVC's error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.startswith("ERROR: "):
            last = lines[number - 1] if number else ""
            # A stage that was killed ends with its progress bar.
            from_stage = "failed to run" in line and not re.search(r"\d%\|| done in ", last)
            return last if last and from_stage else line
    return lines[-1] if lines else "no output"
