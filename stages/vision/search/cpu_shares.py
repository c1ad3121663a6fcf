"""Experiments that run at the same time divide the CPU cores; if each used all cores, they would slow each other down.

The number of threads changes the order of floating-point sums, and so the last bits of a result. DVC does not track
it. The MLflow tag `threads` and metrics/run.json record it, and a checkpoint is used only by a training with the same
number of threads. Set OMP_NUM_THREADS to that number to reproduce a result bit for bit.
"""

import os
from pathlib import Path

import psutil
import torch

from vision.pipeline.paths import ROOT, main_root
from vision.search import trial


def share_cores() -> int:
    """Set torch's number of threads to this process's share: all threads / experiments at a time, at least 1.

    OMP_NUM_THREADS takes precedence: if it is set, nothing changes.

    Returns:
        The number of threads.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // max(count_workers(ROOT), trial.parallel_jobs())))
    return torch.get_num_threads()


def count_workers(root: Path) -> int:
    """Number of DVC queue workers that run experiments of this checkout; 1 outside the queue.

    Args:
        root: where the stage runs. The queue makes a copy below `.dvc/tmp/exps/` for each experiment.
    """
    checkout = main_root(root)
    if checkout == root:
        return 1
    return max(1, sum(_works_for(process, checkout) for process in psutil.process_iter(["cmdline", "cwd"])))


def _works_for(process: psutil.Process, checkout: Path) -> bool:
    command, folder = process.info["cmdline"], process.info["cwd"]  # None for another user's process
    return bool(command and folder) and "queue-worker" in command and Path(folder).is_relative_to(checkout)
