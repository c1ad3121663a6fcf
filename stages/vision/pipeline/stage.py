"""How a stage begins, ends and fails: a user's mistake becomes one line and a non-zero exit, never a traceback."""

import atexit
import fcntl
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from vision.pipeline.errors import UserError, resource_hint
from vision.pipeline.paths import ROOT


def peak_memory() -> float:
    """The most memory, in MiB, that this process has held in RAM so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def run_stage(main: Callable[[], None], interrupted: str = "`dvc repro` begins this stage anew") -> None:
    """Run `main` as the stage named like its script, and exit with 0, 1 (an error) or 130 (interrupted).

    Two processes never run one script of one checkout at once: they would write the same files.

    Args:
        main: does the work.
        interrupted: what is told whoever interrupts it.
    """
    name = Path(sys.argv[0]).stem
    started = time.perf_counter()
    # A polite kill unwinds like Ctrl-C, so that temporary files go and the MLflow run is closed.
    signal.signal(signal.SIGTERM, _interrupt)
    atexit.register(_leave_the_garbage)
    gc.freeze()  # what was imported stays: later searches for garbage leave it out
    gc.enable()
    try:
        _lock(Path(sys.argv[0]))
        main()
    except UserError as error:
        _fail(name, str(error), status=1)
    except KeyboardInterrupt:
        _fail(name, f"interrupted; {interrupted}", status=130)
    except (MemoryError, RuntimeError) as error:
        advice = resource_hint(error)
        if advice is None:
            raise
        _fail(name, advice, status=1)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        # A copy that fails for want of space names what it copies first, then the file that there is no space for.
        _fail(name, f"{error.filename2 or error.filename or 'system'}: {error.strerror}", status=1)
    seconds = time.perf_counter() - started
    print(f"{name}: done in {seconds:.1f} s, peak memory {peak_memory():,.0f} MiB", flush=True)


@contextmanager
def importing() -> Iterator[None]:
    """For the block, which imports something large, look for no garbage: a third of the time that imports take.

    What they make stays, so nothing would be found; and later searches leave it out.
    """
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        gc.enable()


def _lock(script: Path) -> None:
    """Lock a script for this process, until that ends in whatever way.

    Raises:
        UserError: another process has it.
    """
    if not script.is_file():
        return
    try:
        fcntl.flock(os.open(script, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process runs {script} in this checkout; wait until it ends") from None
    except OSError:
        pass  # a file system that knows no locks


def _leave_the_garbage() -> None:
    """Python looks for garbage once more before it ends, which takes a second where torch and MLflow are imported."""
    gc.freeze()
    if "triton" in sys.modules:  # it would take what is left for leaks, and say so in forty lines
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    elif advice := resource_hint(error):
        print(f"{Path(sys.argv[0]).stem}: {advice}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _excepthook  # for what happens before `run_stage`, while a stage still imports
if Path(sys.argv[0]).absolute().parent == ROOT / "stages":
    gc.disable()  # until `run_stage`, as `importing` does


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _fail(name: str, message: str, status: int) -> NoReturn:
    for line in message.splitlines():
        print(f"{name}: {line}", file=sys.stderr, flush=True)
    sys.exit(status)
