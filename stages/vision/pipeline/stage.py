"""How a stage starts, runs and ends: an expected error is one line and a non-zero exit status.

A script calls `start_stage()` before its slow imports and `run_stage(main)` at its end. Importing this module takes
milliseconds, so packages are imported in the functions that need them, and it changes nothing in the process.
"""

import atexit
import gc
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from vision.pipeline.errors import UserError, error_message
from vision.pipeline.messages import warn
from vision.pipeline.paths import ROOT

_STATUS = Path("/proc/self/status")


def start_stage() -> None:
    """Prepare the process for imports that take seconds; call this first in a script.

    Until `run_stage`, Ctrl-C ends the process at once, and lack of memory prints one line. The garbage collector is off
    until then, which makes imports a third faster.
    """
    sys.excepthook = _excepthook
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if the shell ignores it for this process
        signal.signal(signal.SIGINT, _exit_interrupted)
    gc.disable()


def run_stage(
    main: Callable[[], None], resume_hint: str = "`dvc repro` starts this stage again", single: bool = True
) -> None:
    """Run `main` as the stage that the script is named after. Exit with status 1 after an error, 130 after Ctrl-C.

    With VISION_DEBUG=1 in the environment, an error is shown with its traceback.

    Args:
        main: the work of the stage.
        resume_hint: what to do after an interruption; part of the message.
        single: whether to refuse to start while another process runs the script in this checkout. Stages do, because
            both processes would write the same files.
    """
    name = Path(sys.argv[0]).stem
    started = time.perf_counter()
    # Handle SIGTERM like Ctrl-C, so that temporary files are removed and the MLflow run is closed.
    signal.signal(signal.SIGTERM, _interrupt)
    atexit.register(_skip_final_collection)
    gc.freeze()  # imported objects live until the end; later collections skip them
    gc.enable()
    try:
        if signal.getsignal(signal.SIGINT) is _exit_interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with _single_process(Path(sys.argv[0])) if single else nullcontext():
            main()
    except KeyboardInterrupt:
        warn(name, f"interrupted; {resume_hint}")
        sys.exit(130)
    except Exception as error:
        message = error_message(error)
        if message is None:
            raise
        _print_error(name, message, error)
        sys.exit(1)
    seconds = time.perf_counter() - started
    print(f"{name}: done in {seconds:.1f} s, peak memory {peak_memory():,.0f} MiB", flush=True)


def peak_memory() -> float:
    """Return the peak resident memory of this process in MiB."""
    if sys.platform == "linux" and (peak := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
        return int(peak[1]) / 2**10
    import psutil

    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset / 2**20
    try:
        import resource
    except ImportError:
        return memory.rss / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def importing() -> Iterator[None]:
    """Turn the garbage collector off while the block imports a large package; imports are a third faster.

    Imported objects live until the end, so later collections skip them.
    """
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        gc.enable()


@contextmanager
def _single_process(script: Path) -> Iterator[None]:
    """Hold the lock of a script of this checkout. The lock ends with the process, however that ends.

    Raises:
        UserError: another process holds the lock.
    """
    if not script.is_file():  # python -c
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(ROOT / ".dvc" / "tmp" / f"{script.stem}.lock", timeout=0, fallback_to_soft=False)
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"another process runs {script} in this checkout; wait until it ends") from None
    except OSError:
        pass  # the file system is read-only or has no locks
    try:
        yield
    finally:
        lock.release()


def _skip_final_collection() -> None:
    """Skip the collection at interpreter exit, which takes a second after torch and MLflow are imported."""
    gc.freeze()
    if "triton" in sys.modules:  # it would report uncollected objects as leaks, in forty lines on stderr
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    name = Path(sys.argv[0]).stem
    if message := error_message(error):
        _print_error(name, message, error)
    else:
        sys.__excepthook__(kind, error, trace)


def _exit_interrupted(signum: int, frame: FrameType | None) -> NoReturn:
    """End the process during the imports. A KeyboardInterrupt would be lost in packages that catch every exception."""
    os.write(2, f"{Path(sys.argv[0]).stem}: interrupted\n".encode())  # print could be in use by what is interrupted
    os._exit(130)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _print_error(name: str, message: str, error: BaseException) -> None:
    if os.environ.get("VISION_DEBUG") == "1":
        traceback.print_exception(error)
    warn(name, message)
