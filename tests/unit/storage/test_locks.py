import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import Timeout

from vision.pipeline.paths import ROOT
from vision.storage.locks import lock_dir


def test_the_directory_is_created_and_locked(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with lock_dir(folder):
        assert folder.is_dir()
        with pytest.raises(Timeout), lock_dir(folder):
            pass
        assert folder.is_dir(), "the holder's directory stays"
        (folder / "file").touch()
    with lock_dir(folder):
        assert (folder / "file").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


def test_an_empty_directory_is_removed_even_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock_dir(tmp_path / "a"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), lock_dir(tmp_path / "file"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "stages")!r})
from pathlib import Path
from vision.storage.locks import lock_dir
with lock_dir(Path({str(folder)!r})):
    print("locked", flush=True)
    sys.stdin.readline()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(Timeout), lock_dir(folder):
            pass
        holder.kill()
    with lock_dir(folder):
        assert folder.is_dir()


def test_no_two_hold_the_lock_while_others_remove_the_directory(tmp_path: Path) -> None:
    folder, holders, mistakes = tmp_path / "a", [], []

    def hold(number: int) -> int:
        held = 0
        while held < 50:
            try:
                with lock_dir(folder):
                    holders.append(number)
                    if holders != [number] or not folder.is_dir():
                        mistakes.append(list(holders))
                    holders.remove(number)
                    held += 1
            except Timeout:
                pass
        return held

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(hold, range(4))) == 200
    assert mistakes == []
    assert list(tmp_path.iterdir()) == []
