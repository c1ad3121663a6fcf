"""How experiments divide the cores: real processes with the command line of DVC queue workers."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vision.search import cpu_shares


@contextmanager
def running(folder: Path, count: int, *arguments: str) -> Iterator[None]:
    command = [sys.executable, "-c", "input('ready')", *arguments]
    processes = [
        subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.read(5) == b"ready"
        yield
    finally:
        for process in processes:
            process.communicate(b"\n")


def test_only_workers_of_this_checkout_count_and_only_inside_the_queue(tmp_path: Path) -> None:
    checkout, other = tmp_path / "checkout", tmp_path / "other"
    copy = checkout / ".dvc/tmp/exps/tmpabc"
    copy.mkdir(parents=True)
    other.mkdir()
    assert cpu_shares.count_workers(copy) == 1
    with running(checkout, 3, "exp", "queue-worker", "dvc-exp-1"), running(other, 2, "exp", "queue-worker", "x"):
        with running(checkout, 1, "exp", "show"):
            assert cpu_shares.count_workers(copy) == 3
        assert cpu_shares.count_workers(checkout) == 1, "`dvc repro` in the checkout is not an experiment of the queue"


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_each_worker_gets_an_equal_share_of_at_least_one_thread(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    assert cpu_shares.share_cores() == 4
    monkeypatch.setattr(cpu_shares, "count_workers", lambda root: 2)
    assert cpu_shares.share_cores() == 2
    monkeypatch.setattr(cpu_shares, "count_workers", lambda root: 9)
    assert cpu_shares.share_cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    assert cpu_shares.share_cores() == 3
