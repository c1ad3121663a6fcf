"""Kill the pipeline without warning at random moments, start it again, and compare what comes out in the end.

    python benchmarks/kill.py --times 25

Runs the tests' small project in temporary folders: once undisturbed, then killed (SIGKILL, the whole process group) and
started again until it has been killed so many times and is done. Whenever it is done it begins anew.
"""

import argparse
import hashlib
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from project import Project, clone

OUTPUTS = (
    "data/raw",
    "data/processed",
    "data/samples.png",
    "models/model.pt",
    "models/model.json",
    "data/predictions",
    "metrics/confusion_matrix.csv",
    "metrics/per_class.csv",
    "metrics/calibration.csv",
)
TIMES = ("seconds", "images_per_s", "share_of_peak")


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
        began = time.monotonic()
        undisturbed = copied(made, 0)
        undisturbed.run("dvc", "repro")
        whole = time.monotonic() - began
        wanted = hashes(undisturbed)
        print(f"undisturbed: {whole:.0f} s, {len(wanted)} files compared", flush=True)

        kills, ends, differing = Counter[str](), 0, 0
        project = copied(made, 1)
        while True:
            killed = sum(kills.values())
            last = killed == options.times
            stage = killed_in(project, math.inf if last else chance.uniform(0, whole))
            if stage is not None:
                kills[stage] += 1
                print(f"kill {killed + 1:2d}: {stage}", flush=True)
                continue
            ends += 1
            found = hashes(project)
            different = [name for name in wanted if found.get(name) != wanted[name]]
            partial = [path.name for path in project.root.rglob("*.partial")]
            left = list(project.root.glob("checkpoints/*"))
            differing += bool(different or partial or left)
            print(f"end {ends}: different {different or 'nothing'}, left {[*partial, *left] or 'nothing'}", flush=True)
            if last:
                break
            shutil.rmtree(project.root)
            project = copied(made, ends + 1)
    print("| killed in | times |\n|---|---|")
    for stage, times in kills.most_common():
        print(f"| {stage} | {times} |")
    print(f"\n{ends} ends, {differing} of them other than the undisturbed one")
    sys.exit(differing > 0)


def copied(project: Project, number: int) -> Project:
    """The project as it was before anything ran."""
    root = project.root.parent / f"copy{number}"
    shutil.copytree(project.root, root, symlinks=True)
    return Project(root, project.home, {"OMP_NUM_THREADS": "1"})


def killed_in(project: Project, seconds: float) -> str | None:
    """Run the pipeline for so long, kill it, and give the stage in which that was; None if it was done before."""
    log = project.root.parent / "log"
    process = project.start("sh", "-c", f"exec dvc repro >{log} 2>&1")
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    printed = log.read_text(errors="replace")
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL or "Traceback" in printed:
        sys.exit(f"it failed by itself:\n{printed}")
    last = re.findall(r"^Running stage '(\w+)'|^(Updating lock file)", printed, re.M)
    stage = "DVC, before the first stage that ran" if not last else last[-1][0] or "DVC, between two stages"
    return f"{stage}, which went on from a checkpoint" if "goes on from" in printed and stage == "train" else stage


def hashes(project: Project) -> dict[str, str]:
    """A hash of each file that holds no times, and of the history without them."""
    paths = [project.root / name for name in OUTPUTS]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    found = {
        str(file.relative_to(project.root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }
    rows = [{name: row[name] for name in row if name not in TIMES} for row in project.table("metrics/history.csv")]
    return found | {"metrics/history.csv": hashlib.sha256(repr(rows).encode()).hexdigest()}


if __name__ == "__main__":
    main()
