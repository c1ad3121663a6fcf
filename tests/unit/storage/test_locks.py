"""A folder for one alone; that names outlast a power cut cannot be tried here, only that they are waited for."""

import os
import threading
from pathlib import Path

import pytest

from vision.storage.atomic import sync
from vision.storage.locks import lock_dir


def test_a_folder_is_made_and_nobody_else_can_have_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    handle = lock_dir(folder)
    assert folder.is_dir()
    with pytest.raises(BlockingIOError):
        lock_dir(folder)
    os.close(handle)
    os.close(lock_dir(folder))


def test_whoever_waits_for_a_folder_that_is_removed_gets_the_one_of_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    handle, got = lock_dir(folder), []
    waiting = threading.Thread(target=lambda: got.append(lock_dir(folder, wait=True)))
    waiting.start()
    waiting.join(timeout=0.3)
    assert not got, "it waits"
    folder.rmdir()
    os.close(handle)
    waiting.join(timeout=30)
    assert os.path.samestat(folder.stat(), os.fstat(got[0]))
    os.close(got[0])


def test_what_cannot_be_had_is_an_error_and_no_handle_stays_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(OSError, match="file"):
        lock_dir(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="missing"):
        sync(tmp_path / "missing")
    sync(tmp_path / "file")
    sync(tmp_path)
    assert len(os.listdir("/dev/fd")) == before
