"""How a stage ends, each time in a real process."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vision.stage import ROOT

PRELUDE = "import sys, time; sys.argv = ['stages/brew.py']; from vision.stage import UserError, run_stage\n"


def start(body: str) -> subprocess.Popen[str]:
    code = PRELUDE + f"def main():\n    {body}\nrun_stage(main)"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT / "stages", text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(body: str) -> tuple[int, str, str]:
    process = start(body)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_stage_that_ends_well_says_how_long_it_took_and_its_memory() -> None:
    status, out, err = end("print('brewing')")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "brewing"
    assert out.splitlines()[1].startswith("brew: done in 0.0 s, peak memory ")


def test_a_users_mistake_is_said_without_a_traceback_line_by_line() -> None:
    assert end("raise UserError('no water\\nno tea')") == (1, "", "brew: no water\nbrew: no tea\n")


def test_a_fault_of_the_system_names_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "tea"
    assert end(f"open({str(missing)!r}, 'w')") == (1, "", f"brew: {missing}: No such file or directory\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    status, _, err = end("f = open('/dev/full', 'w'); f.write('tea'); f.flush()")
    assert (status, err) == (1, "brew: system: No space left on device\n")


def test_a_defect_keeps_its_traceback() -> None:
    status, _, err = end("1 / 0")
    assert status == 1
    assert "ZeroDivisionError" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stage_unwinds_and_exits_with_130(number: int) -> None:
    process = start("""
    try:
        print('ready', flush=True)
        time.sleep(60)
    finally:
        print('cleaned', flush=True)
    """)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert (process.returncode, out) == (130, "cleaned\n")
    assert err == "brew: interrupted; `dvc repro` begins this stage anew\n"
