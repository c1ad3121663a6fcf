"""Processes that do something at the same moment."""

import subprocess
import sys
from collections.abc import Sequence

from vision.pipeline.paths import ROOT


def at_once(commands: Sequence[Sequence[str]]) -> None:
    """Run Python code, each with its arguments, in a process of its own; all begin when all are ready, and end well.

    The code prints "ready" when it has imported what it needs, and waits for a line.
    """
    pipe = subprocess.PIPE
    environment = {"PYTHONPATH": str(ROOT / "stages"), "PATH": "", "MLFLOW_LOGGING_LEVEL": "CRITICAL"}
    processes = [
        subprocess.Popen([sys.executable, "-c", *command], env=environment, stdin=pipe, stdout=pipe, text=True)
        for command in commands
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [(process.communicate()[0], process.returncode) for process in processes] == [("", 0)] * len(processes)
