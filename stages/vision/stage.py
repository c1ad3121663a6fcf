"""How a stage begins, ends and fails: a user's mistake becomes one line and a non-zero exit, never a traceback."""

import atexit
import gc
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
"""The checkout that this code belongs to; inside `dvc exp run --temp` it is the experiment's own copy."""


def main_root(root: Path) -> Path:
    """The checkout that lasts: `root`, or the one whose copy it is that `dvc exp run --queue` or `--temp` made."""
    for folder in root.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root


class UserError(Exception):
    """Something that the user can put right; the message names the file or parameter, what is wrong and what to do."""


def peak_memory() -> int:
    """The most memory, in bytes, that this process has held in RAM so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_stage(main: Callable[[], None], interrupted: str = "`dvc repro` begins this stage anew") -> None:
    """Run `main` as the stage named like its script, and exit with 0, 1 (an error) or 130 (interrupted).

    Args:
        main: does the work.
        interrupted: what is told whoever interrupts it.
    """
    name = Path(sys.argv[0]).stem
    started = time.perf_counter()
    # A polite kill unwinds like Ctrl-C, so that temporary files go and the MLflow run is closed.
    signal.signal(signal.SIGTERM, _interrupt)
    atexit.register(_leave_the_garbage)
    try:
        main()
    except UserError as error:
        _fail(name, str(error), status=1)
    except KeyboardInterrupt:
        _fail(name, f"interrupted; {interrupted}", status=130)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        _fail(name, "out of memory; lower train.batch_size or evaluate.batch_size in params.yaml", status=1)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        _fail(name, f"{error.filename or 'system'}: {error.strerror}", status=1)
    seconds = time.perf_counter() - started
    print(f"{name}: done in {seconds:.1f} s, peak memory {peak_memory() / 2**20:,.0f} MiB", flush=True)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; torch has a class of its own for this on a GPU, and none on a CPU."""
    return isinstance(error, MemoryError) or re.search(r"out of memory|allocate memory", str(error)) is not None


def _leave_the_garbage() -> None:
    """Python looks for garbage once more before it ends, which takes a second where torch and MLflow are imported."""
    if "triton" not in sys.modules:  # it would take what is left for leaks, and say so in forty lines
        gc.freeze()


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _excepthook  # for Ctrl-C before `run_stage`, while a stage still imports


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _fail(name: str, message: str, status: int) -> NoReturn:
    for line in message.splitlines():
        print(f"{name}: {line}", file=sys.stderr, flush=True)
    sys.exit(status)
