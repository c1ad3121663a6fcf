"""Processes that start work at the same moment."""

import subprocess
import sys
from collections.abc import Sequence

from vision.pipeline.paths import ROOT


def run_concurrently(commands: Sequence[Sequence[str]], **variables: str) -> None:
    """Run each command, Python code and its arguments, in its own process; all start together and must succeed.

    Their environment has few variables besides `variables`.

    The code must import what it needs, print "ready", and then wait for a line on standard input.
    """
    pipe = subprocess.PIPE
    environment = {"PYTHONPATH": str(ROOT / "stages"), "PATH": "", "MLFLOW_LOGGING_LEVEL": "CRITICAL"}
    environment |= variables
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
