"""Experiments that run at once divide the cores; each taking all, they would wait for one another."""

import os
from pathlib import Path

import psutil
import torch

from vision.pipeline.paths import ROOT, main_root
from vision.search import trials


def share_cores() -> int:
    """Have torch use this process's share of the cores: all, or those of a trial of a search or a worker of the queue.

    What OMP_NUM_THREADS says stays. With other threads sums are rounded otherwise, so that figures may differ a little.

    Returns:
        The number of threads.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // max(workers(ROOT), trials.jobs())))
    return torch.get_num_threads()


def workers(root: Path) -> int:
    """How many workers of DVC's queue run experiments of this checkout; 1 outside the queue.

    Args:
        root: where the stage runs; the queue makes a copy below `.dvc/tmp/exps/` for each experiment.
    """
    checkout = main_root(root)
    if checkout == root:
        return 1
    return max(1, sum(_works_for(process, checkout) for process in psutil.process_iter(["cmdline", "cwd"])))


def _works_for(process: psutil.Process, checkout: Path) -> bool:
    command, folder = process.info["cmdline"], process.info["cwd"]  # None where another user's
    return bool(command and folder) and "queue-worker" in command and Path(folder).is_relative_to(checkout)
