"""Kill the pipeline at random moments of every stage, start it again, and compare the results with an undisturbed run.

    pytest -m soak -n 0 -s tests/soak/test_kill.py                     # 25 kills
    SOAK_KILLS=5 SOAK_SEED=1 pytest -m soak -n 0 -s tests/soak/test_kill.py

Each kill sends SIGKILL to the whole process group at a random moment of a stage, within the time that the stage took
undisturbed. The stages are killed in turn. After the last stage the pipeline runs to its end, and a new copy starts.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from project import Project, clone

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]

STAGES = ("download", "preprocess", "train", "evaluate", "report")
KILLS = int(os.environ.get("SOAK_KILLS", "25"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
"""Seed of the random moments."""
TRUNCATED = {"dvc.lock' validation failed": "dvc.lock", "Unable to read RWLock-file": ".dvc/tmp/rwlock"}
"""DVC's errors for files that it was writing when it was killed, which it does not repair."""


def test_a_killed_pipeline_ends_in_the_same_results(tmp_path: Path) -> None:
    assert KILLS >= 1, "SOAK_KILLS is at least 1"
    generator = random.Random(SEED)
    original = clone(tmp_path)
    original.set(train={"epochs": 20, "checkpoint_seconds": 0.01})
    original.commit("a project to kill")
    undisturbed = copy_project(original, 0)
    durations = {stage: time_stage(undisturbed, stage) for stage in STAGES}
    expected = undisturbed.output_hashes(*STAGES)
    assert expected
    print(f"\nundisturbed: {durations}; {len(expected)} hashes of dvc.lock compared", flush=True)

    kills, runs, failures = dict.fromkeys(STAGES, 0), 0, []
    while sum(kills.values()) < KILLS:
        runs += 1
        project = copy_project(original, runs)
        for stage in STAGES:
            # A stage that ended before its kill is killed in the next run instead.
            if sum(kills.values()) == KILLS or kills[stage] > min(kills.values()):
                continue
            after = generator.uniform(0, durations[stage])
            if run_and_kill(project, stage, after):
                kills[stage] += 1
                print(f"kill {sum(kills.values()):2d}: {stage}, after {after:.1f} s", flush=True)
        run_and_kill(project, STAGES[-1], None)
        problems = compare_results(project, expected)
        print(f"run {runs}: {problems or 'same results, nothing left behind'}", flush=True)
        failures += [f"run {runs}: {problem}" for problem in problems]
        shutil.rmtree(project.root)
    print(f"kills by stage: {kills}; {runs} runs", flush=True)
    assert failures == []


def compare_results(project: Project, expected: dict[str, str]) -> list[str]:
    """What differs from the undisturbed run, and what the kills left behind; each name is a problem."""
    hashes = project.output_hashes(*STAGES)
    problems = [f"{name} differs" for name in expected if hashes.get(name) != expected[name]]
    if "up to date" not in (status := project.run("dvc", "status")):
        problems.append(f"dvc status: {status}")
    remaining = [*project.root.rglob("*.partial"), *project.root.rglob(".*.old"), *project.root.glob("checkpoints/*")]
    return problems + [f"{path.relative_to(project.root)} remains" for path in remaining]


def copy_project(project: Project, number: int) -> Project:
    """Copy a project in which nothing has run."""
    root = project.root.parent / f"copy{number}"
    shutil.copytree(project.root, root, symlinks=True)
    return Project(root, project.home, {"OMP_NUM_THREADS": "1"})


def time_stage(project: Project, stage: str) -> float:
    """Run the pipeline up to a stage; return the seconds from DVC's announcement of the stage to the end."""
    process = project.start("dvc", "repro", stage)
    output = read_until_start(process, stage)
    started = time.monotonic()
    output += process.communicate()[0]
    assert process.returncode == 0, output
    return round(time.monotonic() - started, 1)


def run_and_kill(project: Project, stage: str, after: float | None) -> bool:
    """Run the pipeline up to a stage, and kill it after so many seconds of that stage (None: never).

    Returns:
        Whether it was still running then.
    """
    process = project.start("dvc", "repro", stage)
    output = read_until_start(process, stage)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=after)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    output += process.communicate()[0]
    for message, file in TRUNCATED.items():
        if message in output:
            (project.root / file).unlink()
            print(f"DVC was killed while it wrote {file}: removed", flush=True)
            return run_and_kill(project, stage, after)
    assert process.returncode in (0, -signal.SIGKILL), output
    assert "Traceback" not in output, output
    return process.returncode != 0


def read_until_start(process: "subprocess.Popen[str]", stage: str) -> str:
    """Wait until DVC announces a stage or ends; return the output so far."""
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if line == f"Running stage '{stage}':\n":
            break
    return output
