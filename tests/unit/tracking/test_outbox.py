"""An outbox on the real disk; what it sends to is a list that takes things or does not."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vision.pipeline.paths import ROOT
from vision.tracking import outbox
from vision.tracking.outbox import Outbox, Record, Refused, Unsent, outboxes


class Receiver:
    """Takes what it is sent while it is there."""

    def __init__(self) -> None:
        self.there = True
        self.attempts = 0
        self.taken: list[tuple[object, str | None]] = []

    def __call__(self, record: Record, payload: Path | None) -> None:
        self.attempts += 1
        if not self.there:
            raise Unsent("nobody answers")
        if record["n"] == "bad":
            raise Refused("bad is not a number")
        files = [payload, *payload.rglob("*")] if payload else []
        self.taken.append((record["n"], "".join(file.read_text() for file in files if file.is_file()) or None))


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "unlogged/run"


@pytest.fixture
def box(folder: Path, receiver: Receiver) -> Outbox:
    return Outbox(folder, {"to": "here"}, receiver)


def numbers(receiver: Receiver) -> list[object]:
    return [number for number, _ in receiver.taken]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call tries again, however short ago the last attempt was."""
    monkeypatch.setattr(outbox, "_PAUSE", 0.0)
    monkeypatch.setattr(outbox, "_WAITS", 0)


def test_what_can_be_sent_is_kept_nowhere(box: Outbox, receiver: Receiver) -> None:
    box.put({"n": 1})
    box.put({"n": 2})
    box.close()
    assert numbers(receiver) == [1, 2]
    assert not box.folder.exists()


def test_what_cannot_is_sent_by_a_later_call_in_its_order_with_its_payload_as_it_was(
    box: Outbox, receiver: Receiver, tmp_path: Path, capfd: pytest.CaptureFixture[str], hurried: None
) -> None:
    file, directory = tmp_path / "table.csv", tmp_path / "model"
    directory.mkdir()
    box.put({"n": 1})
    receiver.there = False
    for number, payload in [(2, file), (3, directory), (4, None)]:
        file.write_text(f"a,b {number}")
        (directory / "weights").write_text(f"w {number}")
        box.put({"n": number}, payload)
    file.unlink()
    ((path, about, count),) = outboxes(box.folder.parent)
    assert (path, about, count) == (box.folder, {"to": "here", "reason": "nobody answers"}, 3)
    receiver.there = True
    box.put({"n": 5})
    assert receiver.taken == [(1, None), (2, "a,b 2"), (3, "w 3"), (4, None), (5, None)]
    assert not box.folder.exists()
    gone, back = capfd.readouterr().err.splitlines()
    assert (
        gone == f"MLflow: nobody answers; what cannot be logged is kept in {box.folder}, for the next command that can"
    )
    assert back == f"MLflow: 3 things of run run, kept in {box.folder}, logged now"


def test_attempts_that_fail_are_few_and_closing_makes_one_more(box: Outbox, receiver: Receiver) -> None:
    receiver.there = False
    for number in range(100):
        box.put({"n": number})
    assert receiver.attempts == 1
    receiver.there = True
    box.close()
    assert numbers(receiver) == list(range(100))


def test_the_longer_an_attempt_takes_the_longer_none_is_made(box: Outbox) -> None:
    due = []
    for seconds in (0.001, 5.0):
        box.pause("nobody answers", seconds)
        due.append(box._due - time.monotonic())
    assert due == [pytest.approx(10, abs=1), pytest.approx(100, abs=1)]


def test_a_call_does_not_wait_until_all_that_is_kept_is_sent(
    box: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    receiver.there = False
    for number in range(3):
        box.put({"n": number})
    receiver.there = True
    monkeypatch.setattr(outbox, "_SLICE", 0.0)
    box.put({"n": 3})
    assert numbers(receiver) == [0]
    assert box.deliver()
    assert numbers(receiver) == [0, 1, 2, 3]


def test_what_is_never_taken_is_told_and_stands_in_nobodys_way(
    box: Outbox, receiver: Receiver, capfd: pytest.CaptureFixture[str], hurried: None
) -> None:
    box.put({"n": "bad"})
    receiver.there = False
    box.put({"n": "bad"})
    box.put({"n": 1})
    receiver.there = True
    assert box.deliver()
    assert numbers(receiver) == [1]
    refused = "MLflow: does not take this of run run, which is left out: bad is not a number"
    assert capfd.readouterr().err.splitlines().count(refused) == 2


def test_a_damaged_record_is_named_and_the_others_are_sent(
    box: Outbox, receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.there = False
    for number in range(3):
        box.put({"n": number})
    (box.folder / "00000002.json").write_text('{"n"')
    receiver.there = True
    assert box.deliver()
    assert numbers(receiver) == [0, 2]
    assert f"MLflow: {box.folder}/00000002.json: damaged" in capfd.readouterr().err


def test_a_disk_that_takes_nothing_ends_nothing(
    tmp_path: Path, receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unlogged").write_text("a file where the folder should be")
    box = Outbox(tmp_path / "unlogged/run", {}, receiver)
    receiver.there = False
    box.put({"n": 1})
    receiver.there = True
    box.put({"n": 2})
    box.close()
    assert "cannot be written to" in capfd.readouterr().err


KEEPER = """
import sys, time
from pathlib import Path
from vision.outbox import Outbox, Unsent
def away(record, payload):
    raise Unsent("nobody answers")
box = Outbox(Path(sys.argv[1]), {"to": "here"}, away)
for number in range(3):
    box.put({"n": number})
print("kept", flush=True)
time.sleep(300)
"""


def test_of_a_process_that_was_killed_the_next_one_sends_what_it_kept(
    folder: Path, receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", KEEPER, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT / "stages", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"kept\n"
    with pytest.raises(BlockingIOError):
        Outbox(folder, {}, receiver, wait=False)
    process.kill()
    process.wait()
    (folder / "00000004").mkdir()  # it was about to keep one more
    ((_, about, count),) = outboxes(folder.parent)
    assert count == 3
    box = Outbox(folder, about, receiver, wait=False)
    receiver.there = False
    box.put({"n": 3}, folder / "about.json")
    receiver.there = True
    assert box.deliver()
    assert numbers(receiver) == [0, 1, 2, 3]
    assert json.loads(receiver.taken[3][1] or "")["to"] == "here"
    assert not folder.exists()


def test_one_that_waits_for_the_folder_has_it_when_the_other_is_done_with_it(folder: Path, receiver: Receiver) -> None:
    receiver.there = False
    first = Outbox(folder, {}, receiver)
    first.put({"n": 1})
    script = """
import sys
from pathlib import Path
from vision.outbox import Outbox
print("waits", flush=True)
box = Outbox(Path(sys.argv[1]), {}, lambda record, payload: print(record["n"]))
box.put({"n": 2})
box.close()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT / "stages", stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    receiver.there = True
    assert first.deliver()  # and removes the folder
    assert process.communicate(timeout=60)[0] == "2\n"
    assert not folder.exists()
