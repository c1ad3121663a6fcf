"""Files and directories stay complete under real failures: full disks, kills and renames that fail."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from disks import file_size_limit
from vision.pipeline.paths import ROOT
from vision.storage.atomic import atomic_directory, atomic_write, sync


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_directory(path: Path, name: str) -> None:
    """Replace a directory by one with a single file, which has this name."""
    with atomic_directory(path) as temporary:
        (temporary / name).write_text(name)


def test_a_failed_block_changes_nothing(tmp_path: Path) -> None:
    path, folder = tmp_path / "file", tmp_path / "folder"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "old"

    write_directory(folder, "old")
    with pytest.raises(FileNotFoundError), atomic_directory(folder) as temporary:
        (temporary / "no such folder" / "new").touch()
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["file", "folder"]


def test_a_directory_is_replaced(tmp_path: Path) -> None:
    write_directory(tmp_path / "a" / "folder", "old")
    write_directory(tmp_path / "a" / "folder", "new")
    assert names(tmp_path / "a") == ["folder"]
    assert names(tmp_path / "a" / "folder") == ["new"]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_or_file_is_replaced_too(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "folder"
    path.symlink_to("elsewhere") if kind == "link" else path.touch()
    for _ in range(2):
        write_directory(path, "new")
        assert names(path) == ["new"]
        assert names(tmp_path) == ["elsewhere", "folder"]
    assert names(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_directory_stays_if_a_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
) -> None:
    folder = tmp_path / "folder"
    write_directory(folder, "old")
    rename, calls = os.replace, iter(range(1, 100))

    def replace(source: Path, target: Path) -> None:
        if next(calls) == failing:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(type(error)):
        write_directory(folder, "new")
    assert names(tmp_path) == ["folder"]
    assert names(folder) == ["old"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from vision.storage.atomic import atomic_directory
replace, calls = os.replace, iter(range(1, 100))
def dying(*paths):
    if next(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = dying
with atomic_directory(Path(sys.argv[2])) as temporary:
    (temporary / "new").touch()
"""


@pytest.mark.parametrize("rename", [1, 2])
def test_after_a_kill_the_next_call_finds_the_old_directory(tmp_path: Path, rename: int) -> None:
    folder = tmp_path / "folder"
    write_directory(folder, "old")
    command = [sys.executable, "-c", KILLED, str(ROOT / "stages"), str(folder), str(rename)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert names(tmp_path) == [[".folder.partial", "folder"], [".folder.old", ".folder.partial"]][rename - 1]

    with suppress(ZeroDivisionError), atomic_directory(folder):
        assert names(folder) == ["old"]
        raise ZeroDivisionError
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["folder"]
    write_directory(folder, "newer")
    assert names(folder) == ["newer"]


def test_files_of_a_killed_process_are_removed_by_the_next_call(tmp_path: Path) -> None:
    write_directory(tmp_path / "folder", "old")
    for name in (".folder.partial", ".folder.old"):  # killed while it removed the latter
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    write_directory(tmp_path / "folder", "new")
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["new"]


def test_an_error_names_the_final_path(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(bytes(1000))
    with (
        pytest.raises(OSError, match="File too large") as caught,
        file_size_limit(100),
        atomic_write(tmp_path / "a.json") as temporary,
    ):
        temporary.write_bytes(bytes(1000))
    assert caught.value.filename == str(tmp_path / "a.json")
    with (
        pytest.raises(OSError, match="File too large") as caught,
        file_size_limit(100),
        atomic_directory(tmp_path / "raw") as temporary,
    ):
        shutil.copyfile(tmp_path / "photo", temporary / "photo")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "raw"), None)
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "raw.json"):
        (tmp_path / "missing").read_text()
    assert caught.value.filename == str(tmp_path / "missing"), "a file that is read keeps its name"
    assert names(tmp_path) == ["photo"]


def test_sync_takes_files_and_directories_and_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(FileNotFoundError, match="missing"):
        sync(tmp_path / "missing")
    sync(tmp_path / "file")
    sync(tmp_path)
    assert len(os.listdir("/dev/fd")) == before
