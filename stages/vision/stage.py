"""How a stage begins, ends and fails: a user's mistake becomes one line and a non-zero exit, never a traceback."""

import atexit
import fcntl
import gc
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


_LOWER = {
    "preprocess": "preprocess.image_size or preprocess.train_limit",
    "train": "train.batch_size, model.image_size or the size of the network",
    "evaluate": "evaluate.batch_size",
}
"""What makes a stage need less memory."""


class UserError(Exception):
    """Something that the user can put right; the message names the file or parameter, what is wrong and what to do."""


def at_root(path: str) -> Path:
    """A path as the user wrote it: `~` is a home, and a relative one begins at the checkout.

    Raises:
        UserError: there is no such home.
    """
    try:
        return ROOT / Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path.partition('/')[0]}: there is no such user") from None


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
        advice = remedy(error)
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


def remedy(error: BaseException) -> str | None:
    """What the user can change where an error comes of a parameter; torch has no classes for most of these."""
    said = r"OutOfMemory|out of memory|allocate memory|bad_alloc|ALLOC_FAILED|map segment|start new thread"
    if isinstance(error, MemoryError) or re.search(said, repr(error)):
        stage = Path(sys.argv[0]).stem
        lower = f"lower {_LOWER[stage]} in params.yaml" if stage in _LOWER else "end other programs"
        return f"out of memory; {lower}"
    if found := re.match(r"(\S+) does not have a deterministic implementation", str(error)):
        return f"params.yaml: train.deterministic: there is no deterministic kernel of {found[1]} here; set it to false"
    return None


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
    elif advice := remedy(error):
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
