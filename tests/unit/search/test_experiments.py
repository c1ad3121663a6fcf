"""How trials run: real processes and a real database, with short programs in place of trainings."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import optuna
import psutil
import pytest
import sqlalchemy
from optuna.trial import TrialState

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params
from vision.pipeline.progress import bar
from vision.search import experiments
from vision.search.experiments import TrialRunner, find_error
from vision.search.trial import current_trial, trial_environment
from vision.tracking.run import Run

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
FAIL = ["sh", "-c", "echo 'train: out of luck'; exit 1"]


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(experiments, "LOGS", tmp_path / "logs")
    return tmp_path / "logs"


@pytest.fixture
def new_runner(params: Params, study: optuna.Study) -> Iterator[Callable[..., TrialRunner]]:
    made: list[TrialRunner] = []

    def make(command: Callable[[str, Sequence[str]], list[str]], **search: int) -> TrialRunner:
        changed = params.model_copy(update={"search": params.search.model_copy(update=search)})
        made.append(TrialRunner(study, changed, Run(), command))
        return made[-1]

    yield make
    for runner in made:
        experiments.stop_trials(runner.running)


def wait_for_exit(pid: int) -> None:
    """Wait until a child has ended, and leave it to its parent to collect the status."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_trials_run_until_there_are_enough(
    new_runner: Callable[..., TrialRunner], params: Params, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(name: str, changes: Sequence[str]) -> list[str]:
        """Report as the training of this trial would; its process has nothing left to do."""
        number = int(name.removeprefix("s-"))
        with monkeypatch.context() as patch:
            for variable, value in trial_environment("s", number, jobs=2).items():
                patch.setenv(variable, value)
            current_trial(params).end("finished", 0.5 + number / 10)
        return ["true"]

    runner = new_runner(command, jobs=2, trials=3)
    runner.run()
    assert [(trial.state, trial.value) for trial in study.trials] == [
        (TrialState.COMPLETE, pytest.approx(0.5 + number / 10)) for number in range(3)
    ]
    assert (runner.finished, runner.running) == (3, [])


def test_the_command_and_the_environment_name_the_trial(
    new_runner: Callable[..., TrialRunner], study: optuna.Study
) -> None:
    given = []

    def command(name: str, changes: Sequence[str]) -> list[str]:
        given.append((name, list(changes)))
        return ["sh", "-c", "echo $SEARCH_TRIAL"]

    trial = new_runner(command, jobs=4).start_trial()
    trial.process.wait()
    rate = study.trials[0].params["train.lr"]
    assert given == [("s-0", [f"train.lr={rate}"])]
    assert json.loads(trial.log.read_text()) == {"study": "s", "number": 0, "jobs": 4}
    _, *words = experiments.experiment_command("s-0", given[0][1])
    assert words == ["-m", "dvc", "exp", "run", "--temp", "--name=s-0", f"--set-param=train.lr={rate}"]


def test_trials_that_fail_at_once_are_reported_and_the_others_stopped(new_runner: Callable[..., TrialRunner]) -> None:
    """Four trials end before the first poll and the third failure ends the search: two trials are still listed.

    One of these has been collected by then, so that its process group no longer exists; the other one is running.
    """
    processes: list[psutil.Process] = []

    def command(name: str, changes: Sequence[str]) -> list[str]:
        if name != "s-4":
            return FAIL
        for trial in runner.running:
            wait_for_exit(trial.process.pid)
        return SLEEP

    runner = new_runner(command, jobs=5)
    original = runner.start_trial

    def start_trial() -> experiments.RunningTrial:
        trial = original()
        processes.append(psutil.Process(trial.process.pid))
        return trial

    runner.start_trial = start_trial  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"3 trials in a row failed; the log of the last one is .*s-2\.log"):
        runner.run()
    assert len(processes) == 5
    assert not any(process.is_running() for process in processes)


def test_a_failed_trial_is_named_with_its_error(
    new_runner: Callable[..., TrialRunner], study: optuna.Study, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError):
        new_runner(lambda name, changes: FAIL, jobs=1).run()
    printed = capsys.readouterr()
    assert re.search(r"s-0: failed: train: out of luck; train\.lr=0\.1\d*", printed.out + printed.err)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 3


def test_waiting_for_trials_does_not_read_the_database(
    new_runner: Callable[..., TrialRunner], params: Params, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "REFRESH_SECONDS", 3600.0)
    statements: list[str] = []
    sqlalchemy.event.listen(
        sqlalchemy.Engine, "before_cursor_execute", record := lambda *words: statements.append(words[2])
    )
    try:
        runner = new_runner(lambda name, changes: SLEEP, jobs=2)
        runner.running += [runner.start_trial(), runner.start_trial()]
        with bar(9, "trial", "search") as progress_bar:
            statements.clear()
            runner.poll(progress_bar)
            assert statements, "the first status line reads the database"
            statements.clear()
            for _ in range(100):
                runner.poll(progress_bar)
            assert statements == []
            ended = runner.running[0].process
            ended.kill()
            wait_for_exit(ended.pid)
            runner.poll(progress_bar)
            assert statements, "a trial that ended is read"
            assert len(runner.running) == 1
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", record)


def test_a_status_line_says_how_far_each_trial_is(new_runner: Callable[..., TrialRunner], study: optuna.Study) -> None:
    runner = new_runner(lambda name, changes: SLEEP, jobs=2)
    runner.running += [runner.start_trial(), runner.start_trial()]
    runner.running[1].trial.report(0.25, 1)
    runner.running[1].trial.report(0.5, 2)
    started = time.monotonic()
    with bar(9, "trial", "search") as progress_bar:
        runner.poll(progress_bar)
        assert progress_bar.postfix == "s-0 is starting, s-1 50.0% at epoch 2"
    experiments.stop_trials(runner.running)
    assert time.monotonic() - started < 60
    assert all(trial.process.returncode for trial in runner.running)


@pytest.mark.parametrize(
    ("printed", "error"),
    [
        ("> python x\ntrain: params.yaml: no\nERROR: failed to run\nERROR: failed to run", "train: params.yaml: no"),
        ("train: resumes\nTraceback\nValueError: no\nERROR: 'train': failed to run: exited with 1", "ValueError: no"),
        ("train:   9%|#\rtrain:  10%|#\nERROR: failed to run: exited with -9", "ERROR: failed to run: exited with -9"),
        ("preprocess: done in 1.0 s\nERROR: failed to run\n", "ERROR: failed to run"),
        ("train: best epoch 2\nERROR: unexpected error - no space", "ERROR: unexpected error - no space"),
        ("ERROR: failed to run\n", "ERROR: failed to run"),
        ("an unexpected line\n\n", "an unexpected line"),
        ("", "no output"),
    ],
)
def test_the_error_in_a_log_is_found(tmp_path: Path, printed: str, error: str) -> None:
    log = tmp_path / "log"
    log.write_text(printed)
    assert find_error(log) == error
