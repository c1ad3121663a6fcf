"""Kill the pipeline without warning at random moments of every stage, start it again, and compare what comes out.

    python benchmarks/kill.py --times 25

Runs the tests' small project in temporary folders: once undisturbed, then killed (SIGKILL, the whole process group) and
started again. The stages take turns: a kill comes at a random moment of the next one, within the time that it took when
undisturbed. After the last stage the pipeline goes to its end, and begins anew.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from project import Project, clone

STAGES = ("download", "preprocess", "train", "evaluate", "report")
CUT_SHORT = {"dvc.lock' validation failed": "dvc.lock", "Unable to read RWLock-file": ".dvc/tmp/rwlock"}
"""What DVC says of a file of its own that it was killed while writing, and does not mend."""


def main() -> None:
    """Print a line a kill, and a line each time that the pipeline came to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=25, help="how often it is killed (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        made = clone(Path(folder))
        made.set(train={"epochs": 20, "checkpoint_seconds": 0.01})
        made.commit("a project to kill")
        undisturbed = copied(made, 0)
        durations = {stage: seconds(undisturbed, stage) for stage in STAGES}
        wanted = undisturbed.lasting(*STAGES)
        print(f"undisturbed: {durations}; {len(wanted)} hashes of dvc.lock compared", flush=True)

        kills, ends, differing = dict.fromkeys(STAGES, 0), 0, 0
        while sum(kills.values()) < options.times:
            project = copied(made, ends + 1)
            for stage in STAGES:
                # A stage that was done before it was to be killed has its turn in the next round.
                if sum(kills.values()) == options.times or kills[stage] > min(kills.values()):
                    continue
                after = chance.uniform(0, durations[stage])
                if killed_in(project, stage, after):
                    kills[stage] += 1
                    print(f"kill {sum(kills.values()):2d}: {stage}, after {after:.1f} s", flush=True)
            killed_in(project, STAGES[-1], None)
            ends += 1
            found = project.lasting(*STAGES)
            different = [name for name in wanted if found.get(name) != wanted[name]]
            if "up to date" not in (status := project.run("dvc", "status")):
                different.append(status)
            partial = [path.name for path in project.root.rglob("*.partial")]
            left = list(project.root.glob("checkpoints/*"))
            differing += bool(different or partial or left)
            print(f"end {ends}: different {different or 'nothing'}, left {[*partial, *left] or 'nothing'}", flush=True)
            shutil.rmtree(project.root)
    print("| killed in | times |\n|---|---|")
    for stage, times in kills.items():
        print(f"| {stage} | {times} |")
    print(f"\n{ends} ends, {differing} of them other than the undisturbed one")
    sys.exit(differing > 0)


def copied(project: Project, number: int) -> Project:
    """The project as it was before anything ran."""
    root = project.root.parent / f"copy{number}"
    shutil.copytree(project.root, root, symlinks=True)
    return Project(root, project.home, {"OMP_NUM_THREADS": "1"})


def seconds(project: Project, stage: str) -> float:
    """Run the pipeline up to a stage, and give how long that took from when DVC said that it runs."""
    process = project.start("dvc", "repro", stage)
    printed = until_it_runs(process, stage)
    began = time.monotonic()
    printed += process.communicate()[0]
    if process.returncode:
        sys.exit(f"it failed by itself:\n{printed}")
    return round(time.monotonic() - began, 1)


def killed_in(project: Project, stage: str, after: float | None) -> bool:
    """Run the pipeline up to a stage, and kill it so long after that began; whether it was still running then."""
    process = project.start("dvc", "repro", stage)
    printed = until_it_runs(process, stage)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=after)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    printed += process.communicate()[0]
    for said, file in CUT_SHORT.items():
        if said in printed:
            (project.root / file).unlink()
            print(f"DVC was killed while it wrote {file}: removed", flush=True)
            return killed_in(project, stage, after)
    if process.returncode not in (0, -signal.SIGKILL) or "Traceback" in printed:
        sys.exit(f"it failed by itself:\n{printed}")
    return process.returncode != 0


def until_it_runs(process: "subprocess.Popen[str]", stage: str) -> str:
    """Wait until DVC says that it runs a stage, and give what was printed."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if line == f"Running stage '{stage}':\n":
            break
    return printed


if __name__ == "__main__":
    main()
