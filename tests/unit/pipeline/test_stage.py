"""How a stage ends, each time in a real process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vision.pipeline.paths import ROOT

PRELUDE = "import sys, time; sys.argv = ['stages/brew.py']; from vision.stage import UserError, run_stage\n"


def start(body: str, stage: str = "brew") -> subprocess.Popen[str]:
    code = PRELUDE.replace("brew", stage) + f"def main():\n    {body}\nrun_stage(main)"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT / "stages", text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(body: str, stage: str = "brew") -> tuple[int, str, str]:
    process = start(body, stage)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_stage_that_ends_well_says_how_long_it_took_and_its_memory() -> None:
    status, out, err = end("print('brewing')")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "brewing"
    assert out.splitlines()[1].startswith("brew: done in 0.0 s, peak memory ")


def test_garbage_is_looked_for_when_a_stage_runs_but_not_while_it_imports() -> None:
    code = """
import gc, sys
sys.argv = ["stages/brew.py"]
sys.path.insert(0, "stages")
from vision.stage import importing, run_stage
imports = gc.isenabled()
def main():
    frozen = gc.get_freeze_count()
    print(imports, gc.isenabled(), frozen > 1000)
    with importing():
        print(gc.isenabled())
    print(gc.isenabled(), gc.get_freeze_count() == frozen, "nothing was imported")
    with importing():
        import sqlite3
    print(gc.isenabled(), gc.get_freeze_count() > frozen)
run_stage(main)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, _ = done.stdout.splitlines()
    assert lines == ["False True True", "False", "True True nothing was imported", "True True"]


def test_a_process_that_is_no_stage_looks_for_garbage() -> None:
    code = "import sys; sys.path.insert(0, 'stages'); import gc, vision.stage; print(gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_what_triton_says_of_a_process_that_leaves_its_garbage_is_not_shown() -> None:
    body = "import torch._dynamo; print('x', file=sys.stderr)"
    pytest.importorskip("triton")
    assert end(body)[2] == "x\n"


def test_a_users_mistake_is_said_without_a_traceback_line_by_line() -> None:
    assert end("raise UserError('no water\\nno tea')") == (1, "", "brew: no water\nbrew: no tea\n")


def test_a_fault_of_the_system_names_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "tea"
    assert end(f"open({str(missing)!r}, 'w')") == (1, "", f"brew: {missing}: No such file or directory\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    status, _, err = end("f = open('/dev/full', 'w'); f.write('tea'); f.flush()")
    assert (status, err) == (1, "brew: system: No space left on device\n")


GONE = "brew: out of memory; end other programs\n"


def test_memory_that_runs_out_is_one_line() -> None:
    assert end("raise MemoryError") == (1, "", GONE)
    assert end("bytearray(2**62)") == (1, "", GONE)


def test_memory_that_does_not_even_suffice_for_the_imports() -> None:
    code = PRELUDE + "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 * 10**8, 3 * 10**8)); import torch"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "stages", text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (1, GONE)


@pytest.mark.parametrize(
    ("stage", "lower"),
    [
        ("train", "train.batch_size, model.image_size or the size of the network"),
        ("evaluate", "evaluate.batch_size"),
        ("preprocess", "preprocess.image_size or preprocess.train_limit"),
    ],
)
def test_what_to_lower_when_memory_runs_out(stage: str, lower: str) -> None:
    bodies = {
        "train": "import torch; raise torch.OutOfMemoryError('Tried to allocate 20.00 MiB. GPU 0 has 3 MiB free')",
        "evaluate": "import torch; torch.empty(2**60)",  # a real one, of torch on a CPU
        "preprocess": "import numpy; numpy.empty(2**60, numpy.uint8)",
    }
    assert end(bodies[stage], stage) == (
        1, "", f"{stage}: out of memory; lower {lower} in params.yaml\n"
    )  # fmt: skip


def test_a_script_runs_once_at_a_time(tmp_path: Path) -> None:
    script = tmp_path / "brew.py"
    script.write_text(
        "import sys; from vision.stage import run_stage\nrun_stage(lambda: print(sys.stdin.readline(), flush=True))"
    )

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(ROOT / "stages")},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    refused = f"brew: another process runs {script} in this checkout; wait until it ends\n"
    both = [started(), started()]
    while all(process.poll() is None for process in both):  # each waits for a line, but for the one that is refused
        time.sleep(0.01)
    second, first = sorted(both, key=lambda process: process.poll() is None)
    assert second.communicate() == ("", refused)
    first.kill()
    first.communicate()
    third = started()
    assert third.communicate("tea\n")[0].startswith("tea\n"), "the lock goes with the process"
    assert third.returncode == 0


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


def test_an_operation_without_a_deterministic_kernel_is_one_line_that_names_the_parameter() -> None:
    body = """
    import torch
    from vision.device import compute_deterministically
    compute_deterministically()
    torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # one of the few that have none on any device
    """
    says = "params.yaml: train.deterministic: there is no deterministic kernel of put_ here; set it to false"
    assert end(body) == (1, "", f"brew: {says}\n")
