"""Mounts for tests: a small disk, a full one, a read-only folder. The test is skipped where mounting is not allowed."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a disk of `size` bytes at `folder`."""
    folder.mkdir(parents=True)
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make `folder` read-only, also for the superuser."""
    with _mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield


@contextmanager
def fill_disk(folder: Path, free: int) -> Iterator[None]:
    """Fill the disk at `folder` with one file, so that `free` bytes are left."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        disk = os.statvfs(folder)
        os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - free))
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[None]:
    try:
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("`mount` is not available")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
