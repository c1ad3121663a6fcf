import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from vision.artifacts.checkpoint import Checkpoint, Checkpoints, open_checkpoints
from vision.pipeline.paths import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints/0123456789abcdef"


def checkpoint(step: int) -> Checkpoint:
    state = {"step": step, "weights": {"w": torch.arange(1000.0) + step}, "history": [{"loss": 0.1, "val_loss": None}]}
    return Checkpoint(state, {"mlflow": {"run_id": "abc"}, "tensorboard": None}, seconds=1.5 * step, saved_at=7.0)


def save(saved: Checkpoints, *steps: int) -> None:
    for step in steps:
        saved.next_save = 0
        saved.save_if_due(lambda step=step: checkpoint(step))  # type: ignore[misc]


def latest(folder: Path) -> int | None:
    with open_checkpoints(folder, 60) as saved:
        found = saved.load_latest()
    if found is None:
        return None
    expected = checkpoint(found.training_state["step"])
    assert torch.equal(found.training_state.pop("weights")["w"], expected.training_state.pop("weights")["w"])
    assert found == expected
    return found.training_state["step"]


def test_the_newest_is_found_and_two_are_kept(folder: Path) -> None:
    assert latest(folder) is None
    with open_checkpoints(folder, 60) as saved:
        save(saved, 1, 2, 3)
        assert latest(folder) is None, "in use"
    assert len(list(folder.iterdir())) == 2
    assert latest(folder) == 3
    with open_checkpoints(folder, 60) as saved:
        save(saved, 4)
    assert latest(folder) == 4
    assert len(list(folder.iterdir())) == 2


def test_they_are_saved_at_an_interval_and_the_first_one_at_once(folder: Path) -> None:
    asked = []

    def asking() -> Checkpoint:
        asked.append(time.monotonic())
        return checkpoint(0)

    with open_checkpoints(folder, 0.5) as saved:
        saved.save_if_due(asking)
        assert len(asked) == 1
        while len(asked) < 3:
            saved.save_if_due(asking)
            time.sleep(0.001)
    assert all(later - earlier >= 0.5 for earlier, later in pairwise(asked))


def test_a_slow_save_is_followed_by_a_longer_wait(folder: Path) -> None:
    with open_checkpoints(folder, 0.01) as saved:
        saved.save_if_due(lambda: time.sleep(0.05) or checkpoint(1))  # type: ignore[func-returns-value]
        assert saved.next_save - time.monotonic() > 4


def test_none_are_left_when_training_is_over_and_no_empty_folder(folder: Path) -> None:
    with open_checkpoints(folder, 60) as saved:
        save(saved, 1)
        saved.remove()
        assert not folder.exists()
        save(saved, 2)
    assert not folder.exists()
    with open_checkpoints(folder, 60):
        assert folder.exists()
    assert not folder.exists()


def test_the_end_of_a_training_removes_those_that_nobody_went_on_with(folder: Path) -> None:
    age = {"old": 8, "used": 8, "new": 6, "foreign": 8}  # in days
    others = {name: folder.with_name(name) for name in age}
    with open_checkpoints(others["used"], 60) as used, open_checkpoints(folder, 60) as saved:
        save(used, 1)
        for name in ("old", "new"):
            with open_checkpoints(others[name], 60) as left:
                save(left, 1)
        others["foreign"].mkdir()
        (others["foreign"] / "notes").touch()
        (folder.parent / "file").touch()
        for name, path in others.items():
            then = time.time() - age[name] * 24 * 3600
            os.utime(path, (then, then))
        save(saved, 1)
        saved.remove()
        assert used.load_latest() is not None
    there = {name for name, path in others.items() if path.exists()}
    assert there == {"used", "new", "foreign"}
    assert latest(others["new"]) == 1
    assert (folder.parent / "file").exists()


def test_without_an_interval_there_are_none(folder: Path) -> None:
    with open_checkpoints(folder, None) as saved:
        save(saved, 1)
        assert saved.load_latest() is None
        saved.remove()
    assert not folder.exists()


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def damages(content: bytes) -> Iterator[bytes]:
    yield b""
    yield content[:20]
    yield content[:32]
    yield content[:-1]
    yield content + b"\0"
    yield b"PNG" * 1000
    for place in range(0, len(content), len(content) // 50):
        yield flipped(content, place)


def test_a_damaged_one_is_named_and_removed_and_the_one_before_taken(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_checkpoints(folder, 60) as saved:
        save(saved, 1, 2)
    older, newer = sorted(folder.iterdir())
    content = newer.read_bytes()
    for damage in damages(content):
        newer.write_bytes(damage)
        assert latest(folder) == 1
        assert capfd.readouterr().err == f"train: {newer}: damaged (the checksum does not match); ignored and removed\n"
        assert not newer.exists()
    newer.write_bytes(content)
    assert latest(folder) == 2
    for path in (older, newer):
        path.write_bytes(b"nothing")
    assert latest(folder) is None
    assert capfd.readouterr().err.count(": damaged (") == 2
    assert not folder.exists()


@pytest.mark.parametrize("other", [[1, 2], Path("code"), "text", {"step": 1}])
def test_what_is_no_checkpoint_is_not_opened(folder: Path, other: object, capfd: pytest.CaptureFixture[str]) -> None:
    with open_checkpoints(folder, 60) as saved:
        save(saved, 1)
    buffer = io.BytesIO()
    torch.save(other, buffer)
    (folder / "00000002.pt").write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    assert latest(folder) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "00000002.pt: damaged (" in line


def test_a_second_process_does_without(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_checkpoints(folder, 60) as first:
        with open_checkpoints(folder, 60) as second:
            save(second, 1)
            assert second.load_latest() is None
            second.remove()
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"train: {folder}: in use by another process")
        save(first, 2)
    assert latest(folder) == 2


def test_a_disk_that_is_full_ends_the_saving_and_not_the_training(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open_checkpoints(folder, 60) as saved:
        save(saved, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        try:
            save(saved, 2, 3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"train: {folder}: cannot be written to (File too large); no more checkpoints are saved"
    assert [path.name for path in folder.iterdir()] == ["00000001.pt"]
    assert latest(folder) == 1


def test_a_place_that_cannot_be_written_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with open_checkpoints(tmp_path / "checkpoints/0123", 60) as saved:
        save(saved, 1)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("checkpoints/0123: cannot be used (File exists); no checkpoints are saved")


SAVING = """
import sys, torch
from pathlib import Path
from vision.artifacts.checkpoint import Checkpoint, open_checkpoints
weights = torch.zeros(1_000_000)
with open_checkpoints(Path(sys.argv[1]), 1e-9) as saved:
    found = saved.load_latest()
    print(found.training_state["step"] if found else 0, flush=True)
    for step in range(found.training_state["step"] + 1 if found else 1, 10**9):
        saved.next_save = 0
        saved.save_if_due(lambda: Checkpoint({"step": step, "weights": weights.fill_(step)}, {}, 0.0))
"""


@pytest.mark.slow
def test_killed_in_the_midst_of_saving_there_is_always_a_whole_one(folder: Path) -> None:
    reached = []
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVING, str(folder)],
            env=os.environ | {"PYTHONPATH": str(ROOT / "stages")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        reached.append(int(process.stdout.readline()))
        time.sleep(0.3 + 0.037 * attempt)
        process.kill()
        _, errors = process.communicate()
        assert errors == ""
    assert reached == sorted(set(reached)), "each went on from where the one before had come to"
    with open_checkpoints(folder, 60) as saved:
        found = saved.load_latest()
    assert found is not None
    assert found.training_state["step"] > reached[-1]
    assert bool((found.training_state["weights"] == found.training_state["step"]).all())
