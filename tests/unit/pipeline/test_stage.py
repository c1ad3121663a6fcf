"""How a stage starts and ends, each time in a real process."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpp_compiler import needs_compiler
from vision.pipeline.paths import ROOT

PRELUDE = """
import sys, time
sys.argv = ["stages/brew.py"]
from vision.pipeline.errors import UserError
from vision.pipeline.stage import importing, peak_memory, run_stage, start_stage
"""
HINT = " (set VISION_DEBUG=1 for the traceback)"


def start(body: str, stage: str = "brew", **variables: str) -> subprocess.Popen[str]:
    code = PRELUDE.replace("brew", stage) + f"start_stage()\ndef main():\n    {body}\nrun_stage(main)"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT / "stages", env=os.environ | variables,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(body: str, stage: str = "brew", **variables: str) -> tuple[int, str, str]:
    process = start(body, stage, **variables)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code, with stages/ as working directory."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT / "stages", capture_output=True, text=True, timeout=120)


def test_a_stage_that_succeeds_prints_its_time_and_memory() -> None:
    status, out, err = end("print('brewing')")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "brewing"
    assert out.splitlines()[1].startswith("brew: done in 0.0 s, peak memory ")


# What an import may change in a process.
STATE = """
import gc, os, pathlib, signal, sys
def state():
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    collector = gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()
    return [sys.excepthook, collector, dict(os.environ), os.getcwd(), handlers, sys.path[:]]
"""


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), ("fcntl", "resource")], ids=["", "without fcntl and resource"])
def test_every_module_can_be_imported_and_that_changes_nothing(hidden: tuple[str, ...]) -> None:
    """Windows has neither fcntl nor resource; other packages may use them where they exist."""
    stages = ROOT / "stages"
    files = [path.relative_to(stages) for path in (*stages.glob("*.py"), *stages.glob("vision/**/*.py"))]
    modules = sorted({".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files})
    assert {"train", "vision.pipeline.stage", "vision.core.trainer"} < set(modules)
    code = f"""
import importlib, sys
# Other packages may change the process, so they are imported first.
import filelock, matplotlib.pyplot, mlflow.pytorch, optuna, psutil, sklearn.metrics, torchvision
for name in {hidden!r}:
    sys.modules[name] = None  # `import` then raises ImportError
{STATE}
before = state()
for name in {modules!r}:
    importlib.import_module(name)
assert state() == before, [pair for pair in zip(before, state()) if pair[0] != pair[1]]
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_the_peak_memory_is_known_without_the_resource_module() -> None:
    code = "import sys; sys.modules['resource'] = None\n" + PRELUDE
    code += "before = peak_memory(); block = bytearray(300 * 2**20); del block; print(peak_memory() - before)"
    done = run(code)
    assert float(done.stdout) == pytest.approx(300, abs=30), done.stderr


def test_start_stage_pauses_the_garbage_collector_until_run_stage() -> None:
    code = (
        PRELUDE
        + """
import gc
print(gc.isenabled())
start_stage()
print(gc.isenabled())
def main():
    frozen = gc.get_freeze_count()
    print(gc.isenabled(), frozen > 1000)
    with importing():
        print(gc.isenabled())
    print(gc.isenabled(), gc.get_freeze_count() == frozen, "nothing was imported")
    with importing():
        import wave
    print(gc.isenabled(), gc.get_freeze_count() > frozen)
run_stage(main)
"""
    )
    *lines, _ = run(code).stdout.splitlines()
    assert lines == ["True", "False", "True True", "False", "True True nothing was imported", "True True"]


def interrupt_imports(code: str) -> tuple[int, str, str]:
    """Send SIGINT to a process after `start_stage` when it prints a line; return its status, output and errors."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + "start_stage()\n" + code], cwd=ROOT / "stages", text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("caught", ["ZeroDivisionError", "BaseException"])
def test_ctrl_c_during_the_imports_is_one_line(caught: str) -> None:
    """A package that catches every exception does not swallow it."""
    code = f"""
try:
    print('importing', flush=True)
    time.sleep(60)
except {caught}:
    time.sleep(60)
"""
    assert interrupt_imports(code) == (130, "", "brew: interrupted\n")


@contextmanager
def ignored_sigint() -> Iterator[None]:
    """Ignore SIGINT in processes that are started in the block."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_process_that_ignores_ctrl_c_still_does() -> None:
    """A shell starts background processes like this."""
    code = "print('importing', flush=True); time.sleep(1); run_stage(lambda: print(signal.getsignal(2).name))"
    with ignored_sigint():
        status, out, err = interrupt_imports("import signal\n" + code)
    assert (status, out.splitlines()[0], err) == (0, "SIG_IGN", "")


@pytest.mark.parametrize("script", ["download", "preprocess", "train", "evaluate", "report"])
def test_every_script_starts_before_its_slow_imports(script: str) -> None:
    lines = (ROOT / f"stages/{script}.py").read_text().splitlines()
    first = [line for line in lines if line.startswith(("import ", "from ", "    start_stage()"))][:2]
    assert "from vision.pipeline.stage import " in first[0]
    assert "start_stage()" in first[1]


@pytest.mark.slow
def test_triton_prints_nothing_about_uncollected_objects() -> None:
    body = "import torch._dynamo; print('x', file=sys.stderr)"
    pytest.importorskip("triton")
    assert end(body)[2] == "x\n"


def test_a_user_error_is_printed_line_by_line_without_a_traceback() -> None:
    assert end("raise UserError('no water\\nno tea')") == (1, "", "brew: no water\nbrew: no tea\n")


def test_an_os_error_names_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "tea"
    assert end(f"open({str(missing)!r}, 'w')") == (1, "", f"brew: {missing}: No such file or directory{HINT}\n")


@pytest.mark.parametrize("body", ["open('no such file')", "raise MemoryError", "raise UserError('no tea')"])
def test_vision_debug_shows_the_traceback(body: str) -> None:
    status, out, err = end(body, VISION_DEBUG="1")
    assert (status, out) == (1, "")
    assert err.startswith("Traceback (most recent call last):\n")
    assert "in main\n" in err
    assert err.splitlines()[-1] == end(body)[2].strip()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    status, _, err = end("f = open('/dev/full', 'w'); f.write('tea'); f.flush()")
    assert (status, err) == (1, f"brew: system: No space left on device{HINT}\n")


OUT_OF_MEMORY = f"brew: out of memory; close other programs{HINT}\n"


def test_lack_of_memory_is_one_line() -> None:
    assert end("raise MemoryError") == (1, "", OUT_OF_MEMORY)
    assert end("bytearray(2**62)") == (1, "", OUT_OF_MEMORY)


def test_lack_of_memory_during_the_imports_is_one_line() -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 * 10**8, 3 * 10**8)); import torch"
    done = run(PRELUDE + "start_stage()\n" + code)
    assert (done.returncode, done.stderr) == (1, OUT_OF_MEMORY)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("stage", "parameters"),
    [
        ("train", "train.batch_size, model.image_size or the size of the network"),
        ("evaluate", "evaluate.batch_size"),
        ("preprocess", "preprocess.image_size or preprocess.train_limit"),
    ],
)
def test_lack_of_memory_names_the_parameters_to_lower(stage: str, parameters: str) -> None:
    bodies = {
        "train": "import torch; raise torch.OutOfMemoryError('Tried to allocate 20.00 MiB. GPU 0 has 3 MiB free')",
        "evaluate": "import torch; torch.empty(2**60)",  # a real one, of torch on a CPU
        "preprocess": "import numpy; numpy.empty(2**60, numpy.uint8)",
    }
    assert end(bodies[stage], stage) == (
        1, "", f"{stage}: out of memory; lower {parameters} in params.yaml{HINT}\n"
    )  # fmt: skip


def test_a_script_runs_once_at_a_time(tmp_path: Path) -> None:
    script = tmp_path / "brew.py"
    script.write_text(
        "import sys; from vision.pipeline.stage import run_stage\n"
        "run_stage(lambda: print(sys.stdin.readline(), flush=True))"
    )

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(ROOT / "stages")},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    refused = f"brew: another process runs {script} in this checkout; wait until it ends\n"
    both = [started(), started()]
    while all(process.poll() is None for process in both):  # each waits for a line, except the one that is refused
        time.sleep(0.01)
    second, first = sorted(both, key=lambda process: process.poll() is None)
    assert second.communicate() == ("", refused)
    first.kill()
    first.communicate()
    third = started()
    assert third.communicate("tea\n")[0].startswith("tea\n"), "the lock ends with the process"
    assert third.returncode == 0


def test_a_defect_keeps_its_traceback() -> None:
    status, _, err = end("1 / 0")
    assert status == 1
    assert err.startswith("Traceback (most recent call last):\n")
    assert "ZeroDivisionError" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stage_cleans_up_and_exits_with_130(number: int) -> None:
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
    assert err == "brew: interrupted; `dvc repro` starts this stage again\n"


def test_an_operation_without_a_deterministic_kernel_is_one_line_that_names_the_parameter() -> None:
    body = """
    import torch
    from vision.core.device import compute_deterministically
    compute_deterministically()
    torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # one of the few that have none on any device
    """
    message = "params.yaml: train.deterministic: put_ has no deterministic kernel here; set it to false"
    assert end(body) == (1, "", f"brew: {message}{HINT}\n")


@needs_compiler
def test_a_failed_compilation_is_one_line_that_names_the_parameter() -> None:
    body = """
    import torch
    torch.compile(torch.relu, options={"max_autotune": False})(torch.ones(3))
    """
    code, out, err = end(body, CXX="/absent/g++", TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    assert (code, out) == (1, "")
    message = r"brew: params\.yaml: train\.compile: torch\.compile failed \(.+\); set it to null"
    assert re.fullmatch(message + re.escape(HINT), err.splitlines()[-1])
