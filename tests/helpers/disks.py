"""File systems for tests: small, full, read-only, or with a limit on file sizes."""

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of `size` bytes at `folder` during the block."""
    folder.mkdir(parents=True)
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make `folder` read-only during the block, for root too."""
    with _mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield


@contextmanager
def fill_disk(folder: Path, free: int) -> Iterator[None]:
    """Fill a small disk during the block, except for `free` bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        disk = os.statvfs(folder)
        os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - free))
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Limit files to `size` bytes during the block; a longer write fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[None]:
    try:
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("`mount` is not available")
    if done.returncode:
        pytest.skip(f"cannot mount a file system: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
